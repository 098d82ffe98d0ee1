"""What must hold of a request before anything is made, beyond the form that `server/convert` checks: pure.

Every problem is found and named by its field's path; the first sentence that the user gets lists them all. What
this version does not have (user namespaces, SELinux, CDI devices…) is refused too, never silently left out, because a
container that lacks what was asked for is not the container that was asked for. Such a request is not wrong, so the
answer is UNIMPLEMENTED, as for a whole RPC: critest then skips a spec, and no client takes RunPodSandbox or
CreateContainer for absent. What is wrong in any version is INVALID_ARGUMENT, and wins where both are found.

Out of scope: what only the planner can know (capabilities' names, seccomp profiles, devices), mounts (`mounts`),
and whether the objects exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crishim.engine.plan.request import (
    ContainerConfig,
    ContainerSecurity,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SandboxConfig,
    SandboxSecurity,
    SecurityProfile,
)
from crishim.errors import InvalidArgumentError, UnimplementedError
from crishim.network import names
from crishim.pods import sysctls
from crishim.pods.mounts import mount_problems

SECURITY = "config.linux.security_context"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What else decides over requests: the host's security modules, and the runtime handlers that have a name."""

    apparmor: bool = False
    selinux: bool = False
    handlers: tuple[str, ...] = ()


class Problems:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self.lacking: list[tuple[str, str]] = []

    def bad(self, field: str, problem: str) -> None:
        """Add a problem of a field."""
        self.found.append((field, problem))

    def absent(self, field: str, problem: str) -> None:
        """Add what the CRI has and this version has not."""
        self.lacking.append((field, problem))

    def check(self) -> None:
        """Raise InvalidArgumentError, or UnimplementedError if nothing is wrong but much asked, with all of it."""
        both = [*self.found, *self.lacking]
        if not both:
            return
        (field, problem), *others = both
        text = "; ".join([problem, *(f"{name}: {text}" for name, text in others)])
        if self.found:
            raise InvalidArgumentError(field, text)
        raise UnimplementedError(f"{field}: {text}")


def check_sandbox(config: SandboxConfig, handler: str, abilities: Abilities) -> None:
    """Raise InvalidArgumentError or UnimplementedError unless the sandbox can be made."""
    problems = Problems()
    if not config.metadata.name:
        problems.bad("config.metadata.name", "is empty; a sandbox needs a name")
    if handler and handler not in abilities.handlers:
        problems.bad("runtime_handler", unknown_handler(handler, abilities.handlers))
    _names(problems, config)
    if config.log_directory and not config.log_directory.startswith("/"):
        problems.bad("config.log_directory", f"must be an absolute path, is {config.log_directory!r}")
    _namespaces(problems, config.security.namespaces, container=False)
    if config.security.namespaces.network is NamespaceMode.NODE:
        ports = [p.host_port for p in config.port_mappings if p.host_port and p.host_port != p.container_port]
        if ports:
            problems.bad("config.port_mappings", f"host port {ports[0]} cannot be mapped in the host's own network")
    problems.found.extend(sysctls.problems(config))
    _labels(problems, config.security, abilities)
    problems.check()


def unknown_handler(name: str, known: Sequence[str]) -> str:
    """Return what is wrong with the name of a runtime handler that is not configured."""
    others = f" beside {', '.join(known)}" if known else ""
    return (
        f"{name!r} is not configured: give an empty name for the default handler, or put [runtime.handlers.NAME] into"
        f" the configuration{others}"
    )


def check_container(config: ContainerConfig, sandbox: SandboxConfig, abilities: Abilities) -> None:
    """Raise InvalidArgumentError or UnimplementedError unless the container can be made in this sandbox."""
    problems = Problems()
    security = config.security
    if not config.metadata.name:
        problems.bad("config.metadata.name", "is empty; a container needs a name")
    if not config.image.image:
        problems.bad("config.image.image", "is empty; name an image, or give its id")
    if security.privileged and not sandbox.security.privileged:
        problems.bad(f"{SECURITY}.privileged", "needs a privileged sandbox, and this one is not")
    if security.run_as_group is not None and security.run_as_user is None and not security.run_as_username:
        problems.bad(f"{SECURITY}.run_as_group", "needs run_as_user or run_as_username beside it")
    if config.stdin_once and not config.stdin:
        problems.bad("config.stdin_once", "needs stdin")
    if config.cdi_devices:
        problems.absent("config.CDI_devices", "CDI devices are not there yet; give device nodes by config.devices")
    _shared(problems, security.namespaces, sandbox.security.namespaces)
    _namespaces(problems, security.namespaces, container=True)
    _labels(problems, security, abilities)
    mount_problems(problems, config.mounts)
    problems.check()


def _names(problems: Problems, config: SandboxConfig) -> None:
    """What stands in the pod's hostname and resolv.conf must fit there."""
    for check in (lambda: names.check_hostname(config.hostname), lambda: names.resolv_conf(config.dns, "")):
        try:
            check()
        except InvalidArgumentError as error:
            problems.bad(error.field, error.problem)


def _namespaces(problems: Problems, options: NamespaceOptions, *, container: bool) -> None:
    where = f"{SECURITY}.namespace_options"
    for name in ("network", "ipc"):
        if getattr(options, name) not in {NamespaceMode.POD, NamespaceMode.NODE}:
            problems.bad(f"{where}.{name}", f"must be POD or NODE, is {getattr(options, name).name}")
    if options.pid is NamespaceMode.TARGET and not (container and options.target_id):
        problems.bad(f"{where}.pid", "TARGET is for containers and needs target_id")
    users = options.userns
    if users is None:
        return
    if users.mode in {NamespaceMode.CONTAINER, NamespaceMode.TARGET}:
        problems.bad(f"{where}.userns_options.mode", f"must be POD or NODE, is {users.mode.name}")
    elif users.mode is NamespaceMode.NODE and (users.uids or users.gids):
        problems.bad(f"{where}.userns_options", "mappings need mode POD, the mode is NODE")
    elif users.mode is NamespaceMode.POD:
        for kind, ranges in (("uids", users.uids), ("gids", users.gids)):
            if len(ranges) != 1 or ranges[0].container_id != 0 or ranges[0].length < 1:
                problems.bad(f"{where}.userns_options.{kind}", "must be one mapping that begins at container id 0")
        problems.absent(
            f"{where}.userns_options", "user namespaces are not there yet; run the pod with hostUsers: true"
        )


def _shared(problems: Problems, mine: NamespaceOptions, pods: NamespaceOptions) -> None:
    """A container's network and IPC namespace are its sandbox's; a request that says otherwise contradicts itself."""
    where = f"{SECURITY}.namespace_options"
    for name in ("network", "ipc"):
        if getattr(mine, name) is NamespaceMode.NODE and getattr(pods, name) is not NamespaceMode.NODE:
            problems.bad(f"{where}.{name}", "is NODE, but the sandbox has a namespace of its own")


def _labels(problems: Problems, security: SandboxSecurity | ContainerSecurity, abilities: Abilities) -> None:
    profile = security.apparmor
    if profile is not None and profile.profile_type is ProfileType.LOCALHOST:
        if not profile.localhost_ref:
            problems.bad(f"{SECURITY}.apparmor.localhost_ref", "is empty; name the profile")
        elif not abilities.apparmor:
            problems.bad(
                f"{SECURITY}.apparmor",
                f"profile {profile.localhost_ref!r} cannot be applied: AppArmor is not enabled on this host",
            )
    seccomp: SecurityProfile | None = security.seccomp
    if seccomp is not None and seccomp.profile_type is ProfileType.LOCALHOST and not seccomp.localhost_ref:
        problems.bad(f"{SECURITY}.seccomp.localhost_ref", "is empty; give the profile's path")
    selinux = security.selinux
    if selinux is not None and (selinux.user or selinux.role or selinux.type or selinux.level) and abilities.selinux:
        problems.absent(f"{SECURITY}.selinux_options", "SELinux labels are not there yet")
