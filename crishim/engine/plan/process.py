"""What a container runs and with which rights: request and image config → ProcessPlan. Pure.

The image's config never steers the runtime: only command, environment, directory, user and stop signal are read from
it.
"""

from collections.abc import Sequence
from dataclasses import replace

from crishim.constants import DEFAULT_PATH
from crishim.engine.plan.host import SECCOMP_FIELD
from crishim.engine.plan.pod import pod_hostname
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import CapabilityPlan, ContainerPlan, ExecPlan, ProcessPlan, UserPlan
from crishim.errors import FailedPreconditionError, InvalidArgumentError
from crishim.linux import capabilities
from crishim.linux.seccomp.compiler import compile_profile
from crishim.linux.seccomp.profile import Profile
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerSecurity,
    GroupsPolicy,
    ImageConfig,
    ProfileType,
    SandboxConfig,
    SecurityProfile,
)


def plan_process(
    problems: Problems,
    config: ContainerConfig,
    image: ImageConfig,
    sandbox: SandboxConfig,
    profile: Profile | None,
    settings: PlanSettings,
) -> ProcessPlan:
    """Return the plan; with a problem noted it must not be used.

    Args:
        problems: of the request; what the image and the host tell of it is added.
        config: the request.
        image: what its image says.
        sandbox: its pod's request.
        profile: the seccomp profile that it names, if it could be read.
        settings: of the instance.
    """
    security = config.security
    argv = _argv(config, image)
    if not argv:
        problems.add("config.command", "neither the request nor the image says what to run")
    elif not argv[0]:
        problems.add("config.command", "the program's name is empty")
    if any("\0" in word for word in argv):
        problems.add("config.command", "contains a NUL character")
    sets = _capabilities(security, settings)
    program, flags = _seccomp(problems, security, profile, sets.bounding, settings)
    return ProcessPlan(
        argv=argv,
        env=_environment(config, image, pod_hostname(sandbox, settings)),
        cwd=_cwd(config.working_dir or image.working_dir),
        user=_user(security, image),
        capabilities=sets,
        no_new_privs=security.no_new_privs,
        seccomp=program,
        seccomp_flags=flags,
        rlimits=settings.rlimits,
        oom_score_adj=max(config.resources.oom_score_adj, settings.oom_score_floor),
        terminal=config.tty,
    )


def plan_exec(plan: ContainerPlan, command: Sequence[str]) -> ExecPlan:
    """Return the plan of a further process in a container: same rights and environment, other command, no terminal."""
    process = replace(plan.process, argv=tuple(command), terminal=False)
    return ExecPlan(plan.container_id, process, replace(plan.cgroup, writes=(), device_program=b""))


def _argv(config: ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """Combine as Kubernetes does: a command replaces entrypoint and cmd, args alone replace cmd."""
    if config.command:
        return config.command + config.args
    return image.entrypoint + (config.args or image.cmd)


def _environment(config: ContainerConfig, image: ImageConfig, hostname: str) -> tuple[str, ...]:
    """Return `NAME=value` with raw bytes as latin-1 text; the image's first, the request's override, the last wins."""
    values: dict[str, str] = {"PATH": DEFAULT_PATH}
    if config.tty:
        values["TERM"] = "xterm"
    if hostname:
        values["HOSTNAME"] = hostname
    for entry in image.env:
        name, separator, value = entry.partition("=")
        if separator and name:
            values[_raw(name)] = _raw(value)
    for name, data in config.envs:
        values[_raw(name)] = data.decode("latin-1")
    return tuple(f"{name}={value}" for name, value in values.items())


def _raw(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _cwd(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def _user(security: ContainerSecurity, image: ImageConfig) -> UserPlan:
    merge = security.supplemental_groups_policy is GroupsPolicy.MERGE
    group = "" if security.run_as_group is None else str(security.run_as_group)
    if security.run_as_user is not None:
        user = str(security.run_as_user)
    elif security.run_as_username:
        user = security.run_as_username
    else:
        user, _, image_group = image.user.partition(":")
        group = group or image_group
    return UserPlan(user, group, security.supplemental_groups, merge)


def _capabilities(security: ContainerSecurity, settings: PlanSettings) -> CapabilityPlan:
    wanted = security.capabilities
    if security.privileged:
        return CapabilityPlan(settings.bounding, settings.bounding)
    ambient = capabilities.parse(wanted.add_ambient)[0]
    mask = (capabilities.adjust(capabilities.DEFAULT_MASK, wanted.add, wanted.drop) | ambient) & settings.bounding
    return CapabilityPlan(mask, mask, ambient & mask)


def _seccomp(
    problems: Problems, security: ContainerSecurity, named: Profile | None, bounding: int, settings: PlanSettings
) -> tuple[bytes, int]:
    """Return the filter program, empty where none is wanted, and the flags of seccomp(2) for it."""
    profile: SecurityProfile | None = security.seccomp
    if security.privileged or profile is None or profile.profile_type is ProfileType.UNCONFINED:
        return b"", 0
    if settings.seccomp is None:
        raise FailedPreconditionError("this host's kernel has no seccomp filters; only unconfined containers can run")
    wanted = named if profile.profile_type is ProfileType.LOCALHOST else settings.seccomp
    if wanted is None:
        problems.add(SECCOMP_FIELD, "could not be read")  # who looked has said why, and a field's first problem stays
        return b"", 0
    try:
        return compile_profile(wanted, bounding, settings.arch, settings.kernel), wanted.flags
    except InvalidArgumentError as error:
        problems.add(SECCOMP_FIELD, error.problem)
        return b"", 0
