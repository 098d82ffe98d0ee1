"""Security contexts, namespaces and profiles: protobuf → request records, for sandboxes and containers alike."""

from typing import Any

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.problems import Problems
from crishim.request import (
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
from crishim.server.convert.fields import choice, optional_id

_OLD_KINDS = {
    "runtime/default": ProfileType.RUNTIME_DEFAULT,
    "docker/default": ProfileType.RUNTIME_DEFAULT,
    "unconfined": ProfileType.UNCONFINED,
}
_LOCALHOST = "localhost/"


def sandbox(problems: Problems, message: pb.LinuxSandboxSecurityContext, path: str) -> SandboxSecurity:
    """Return a sandbox's security context."""
    return SandboxSecurity(
        namespaces=namespaces(problems, message.namespace_options, f"{path}.namespace_options"),
        readonly_rootfs=message.readonly_rootfs,
        privileged=message.privileged,
        seccomp=profile(problems, message, path, "seccomp", "seccomp_profile_path"),
        apparmor=profile(problems, message, path, "apparmor", ""),
        **_who(problems, message, path),
    )


def container(problems: Problems, message: pb.LinuxContainerSecurityContext, path: str) -> ContainerSecurity:
    """Return a container's security context."""
    return ContainerSecurity(
        capabilities=capabilities(message.capabilities),
        privileged=message.privileged,
        namespaces=namespaces(problems, message.namespace_options, f"{path}.namespace_options"),
        run_as_username=message.run_as_username,
        readonly_rootfs=message.readonly_rootfs,
        no_new_privs=message.no_new_privs,
        masked_paths=tuple(message.masked_paths),
        readonly_paths=tuple(message.readonly_paths),
        seccomp=profile(problems, message, path, "seccomp", "seccomp_profile_path"),
        apparmor=profile(problems, message, path, "apparmor", "apparmor_profile"),
        **_who(problems, message, path),
    )


def _who(problems: Problems, message: Any, path: str) -> dict[str, Any]:
    """Return the fields that both contexts share: label, user, groups."""
    policy = choice(problems, f"{path}.supplemental_groups_policy", GroupsPolicy, message.supplemental_groups_policy)
    return {
        "selinux": selinux(message.selinux_options) if message.HasField("selinux_options") else None,
        "run_as_user": optional_id(message, "run_as_user"),
        "run_as_group": optional_id(message, "run_as_group"),
        "supplemental_groups": tuple(message.supplemental_groups),
        "supplemental_groups_policy": policy,
    }


def selinux(message: pb.SELinuxOption) -> SelinuxOptions:
    """Return the parts of an SELinux label."""
    return SelinuxOptions(user=message.user, role=message.role, type=message.type, level=message.level)


def capabilities(message: pb.Capability) -> Capabilities:
    """Return capability names as they came."""
    return Capabilities(
        add=tuple(message.add_capabilities),
        drop=tuple(message.drop_capabilities),
        add_ambient=tuple(message.add_ambient_capabilities),
    )


def namespaces(problems: Problems, message: pb.NamespaceOption, path: str) -> NamespaceOptions:
    """Return namespace options."""
    users = message.userns_options if message.HasField("userns_options") else None
    return NamespaceOptions(
        network=choice(problems, f"{path}.network", NamespaceMode, message.network),
        pid=choice(problems, f"{path}.pid", NamespaceMode, message.pid),
        ipc=choice(problems, f"{path}.ipc", NamespaceMode, message.ipc),
        target_id=message.target_id,
        userns=None if users is None else user_namespace(problems, users, f"{path}.userns_options"),
    )


def user_namespace(problems: Problems, message: pb.UserNamespace, path: str) -> UserNamespace:
    """Return user namespace options."""
    return UserNamespace(
        mode=choice(problems, f"{path}.mode", NamespaceMode, message.mode),
        uids=id_mappings(message.uids),
        gids=id_mappings(message.gids),
    )


def id_mappings(messages: Any) -> tuple[IdMapping, ...]:
    """Return ranges of ids."""
    return tuple(IdMapping(item.host_id, item.container_id, item.length) for item in messages)


def profile(problems: Problems, message: Any, path: str, name: str, old: str) -> SecurityProfile | None:
    """Return a profile from its field, or from the deprecated text field where the new one is unset."""
    if not message.HasField(name):
        return _old_profile(problems, getattr(message, old), f"{path}.{old}") if old else None
    given = getattr(message, name)
    kind = choice(problems, f"{path}.{name}.profile_type", ProfileType, given.profile_type)
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
