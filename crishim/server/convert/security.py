"""Security contexts, namespaces and profiles: protobuf → request records, for sandboxes and containers alike."""

from typing import Any

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import (
    Capabilities,
    ContainerSecurity,
    GroupsPolicy,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SandboxSecurity,
    SecurityProfile,
    SelinuxOptions,
    UserNamespace,
)
from crishim.server.convert.fields import MAX_ID, Problems

_SHARED = (NamespaceMode.POD, NamespaceMode.NODE)
_SANDBOX_PID = (NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE)
_OLD_KINDS = {
    "runtime/default": ProfileType.RUNTIME_DEFAULT,
    "docker/default": ProfileType.RUNTIME_DEFAULT,
    "unconfined": ProfileType.UNCONFINED,
}
_LOCALHOST = "localhost/"


def sandbox(problems: Problems, message: pb.LinuxSandboxSecurityContext, path: str) -> SandboxSecurity:
    """Return a sandbox's security context."""
    return SandboxSecurity(
        namespaces=namespaces(problems, message.namespace_options, f"{path}.namespace_options", of_sandbox=True),
        readonly_rootfs=message.readonly_rootfs,
        privileged=message.privileged,
        seccomp=profile(problems, message, path, "seccomp", "seccomp_profile_path"),
        apparmor=profile(problems, message, path, "apparmor", ""),
        **_who(problems, message, path, has_name=False),
    )


def container(problems: Problems, message: pb.LinuxContainerSecurityContext, path: str) -> ContainerSecurity:
    """Return a container's security context."""
    named = bool(message.run_as_username)
    if named and message.HasField("run_as_user"):
        problems.add(
            f"{path}.run_as_username", "must be empty when run_as_user is given: only one of both says who runs"
        )
    return ContainerSecurity(
        capabilities=capabilities(problems, message.capabilities, f"{path}.capabilities"),
        privileged=message.privileged,
        namespaces=namespaces(problems, message.namespace_options, f"{path}.namespace_options", of_sandbox=False),
        run_as_username=problems.one_line(f"{path}.run_as_username", message.run_as_username),
        readonly_rootfs=message.readonly_rootfs,
        no_new_privs=message.no_new_privs,
        masked_paths=_paths(problems, message.masked_paths, f"{path}.masked_paths"),
        readonly_paths=_paths(problems, message.readonly_paths, f"{path}.readonly_paths"),
        seccomp=profile(problems, message, path, "seccomp", "seccomp_profile_path"),
        apparmor=profile(problems, message, path, "apparmor", "apparmor_profile"),
        **_who(problems, message, path, has_name=named),
    )


def _who(problems: Problems, message: Any, path: str, *, has_name: bool) -> dict[str, Any]:
    """Return the fields that both contexts share: label, user, groups."""
    user = problems.optional_id(message, "run_as_user", path)
    group = problems.optional_id(message, "run_as_group", path)
    if group is not None and user is None and not has_name:
        problems.add(f"{path}.run_as_group", "needs a user: give run_as_user too")
    policy = problems.choice(f"{path}.supplemental_groups_policy", GroupsPolicy, message.supplemental_groups_policy)
    return {
        "selinux": selinux(message.selinux_options) if message.HasField("selinux_options") else None,
        "run_as_user": user,
        "run_as_group": group,
        "supplemental_groups": problems.ids(f"{path}.supplemental_groups", message.supplemental_groups),
        "supplemental_groups_policy": policy,
    }


def selinux(message: pb.SELinuxOption) -> SelinuxOptions:
    """Return the parts of an SELinux label."""
    return SelinuxOptions(user=message.user, role=message.role, type=message.type, level=message.level)


def capabilities(problems: Problems, message: pb.Capability, path: str) -> Capabilities:
    """Return capability names as they came; which names exist is the planner's to know."""
    for field in ("add_capabilities", "drop_capabilities", "add_ambient_capabilities"):
        for n, name in enumerate(getattr(message, field)):
            problems.given(f"{path}.{field}[{n}]", name)
    return Capabilities(
        add=tuple(message.add_capabilities),
        drop=tuple(message.drop_capabilities),
        add_ambient=tuple(message.add_ambient_capabilities),
    )


def namespaces(problems: Problems, message: pb.NamespaceOption, path: str, *, of_sandbox: bool) -> NamespaceOptions:
    """Return namespace options; TARGET makes sense for the PID namespace of a container only."""
    pid = problems.choice(f"{path}.pid", NamespaceMode, message.pid, _SANDBOX_PID if of_sandbox else None)
    if pid is NamespaceMode.TARGET and not message.target_id:
        problems.add(f"{path}.target_id", "is missing: pid TARGET joins the container of this id")
    userns = message.userns_options if message.HasField("userns_options") else None
    return NamespaceOptions(
        network=problems.choice(f"{path}.network", NamespaceMode, message.network, _SHARED),
        pid=pid,
        ipc=problems.choice(f"{path}.ipc", NamespaceMode, message.ipc, _SHARED),
        target_id=message.target_id,
        userns=user_namespace(problems, userns, f"{path}.userns_options") if userns is not None else None,
    )


def user_namespace(problems: Problems, message: pb.UserNamespace, path: str) -> UserNamespace:
    """Return user namespace options: one mapping each, which holds the container's id 0, or none with NODE."""
    mode = problems.choice(f"{path}.mode", NamespaceMode, message.mode, _SHARED)
    for field in ("uids", "gids"):
        ranges = getattr(message, field)
        if mode is NamespaceMode.NODE:
            if ranges:
                problems.add(f"{path}.{field}", "must be empty with mode NODE")
        elif len(ranges) != 1:
            problems.add(f"{path}.{field}", f"must hold just one mapping, holds {len(ranges)}")
        elif ranges[0].container_id != 0:
            problems.add(f"{path}.{field}[0].container_id", f"must be 0, is {ranges[0].container_id}")
    return UserNamespace(
        mode=mode,
        uids=id_mappings(problems, message.uids, f"{path}.uids"),
        gids=id_mappings(problems, message.gids, f"{path}.gids"),
    )


def id_mappings(problems: Problems, messages: Any, path: str) -> tuple[IdMapping, ...]:
    """Return ranges of ids, each of at least one id and within 32 bits."""
    for n, item in enumerate(messages):
        if item.length == 0:
            problems.add(f"{path}[{n}].length", "must be at least 1")
        elif max(item.host_id, item.container_id) + item.length - 1 > MAX_ID:
            problems.add(f"{path}[{n}].length", f"reaches beyond the highest id {MAX_ID}")
    return tuple(IdMapping(item.host_id, item.container_id, item.length) for item in messages)


def profile(problems: Problems, message: Any, path: str, name: str, old: str) -> SecurityProfile | None:
    """Return a profile from its field, or from the deprecated text field where the new one is unset."""
    if not message.HasField(name):
        return _old_profile(problems, getattr(message, old), f"{path}.{old}") if old else None
    given = getattr(message, name)
    kind = problems.choice(f"{path}.{name}.profile_type", ProfileType, given.profile_type)
    where = f"{path}.{name}.localhost_ref"
    if kind is ProfileType.LOCALHOST:
        problems.given(where, given.localhost_ref)
    elif given.localhost_ref:
        problems.add(where, f"must be empty with profile_type {kind.name}, is {given.localhost_ref!r}")
    return SecurityProfile(kind, given.localhost_ref)


def _old_profile(problems: Problems, text: str, path: str) -> SecurityProfile | None:
    if not text:
        return None
    if text in _OLD_KINDS:
        return SecurityProfile(_OLD_KINDS[text])
    reference = text.removeprefix(_LOCALHOST)
    if reference == text or not reference:
        problems.add(path, f"must be runtime/default, unconfined or localhost/PROFILE, is {text!r}")
    return SecurityProfile(ProfileType.LOCALHOST, reference)


def _paths(problems: Problems, values: Any, path: str) -> tuple[str, ...]:
    return tuple(problems.absolute(f"{path}[{n}]", value) for n, value in enumerate(values))
