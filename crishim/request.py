"""What a caller asks for, in CRI terms but without protobuf: the input of every plan.

`server/convert` makes these from protobuf messages; `pods/` stores them beside each object and hands them to the
planner. Field names are the CRI's (runtime.v1); what protobuf cannot tell apart (unset and zero) stays as it came.
All classes are frozen, and encodable by `crishim.codec`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class NamespaceMode(IntEnum):
    """Whose namespace is used (CRI `NamespaceMode`)."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class Propagation(IntEnum):
    """Mount propagation (CRI `MountPropagation`)."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class GroupsPolicy(IntEnum):
    """How the image's group file adds to supplemental groups (KEP-3619)."""

    MERGE = 0
    STRICT = 1


class ProfileType(IntEnum):
    """Kind of a security profile (CRI `SecurityProfile.ProfileType`)."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class Protocol(IntEnum):
    """Transport of a port mapping."""

    TCP = 0
    UDP = 1
    SCTP = 2

    @property
    def word(self) -> str:
        """The protocol as programs write it, like `tcp`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Metadata:
    """A sandbox's identity as kubelet gives it."""

    name: str
    uid: str = ""
    namespace: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """A container's identity within its sandbox."""

    name: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """resolv.conf's content; None, empty and full are three things."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One port of a pod; a host_port of 0 publishes it nowhere, host_ip "" means any address of the host."""

    protocol: Protocol = Protocol.TCP
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class IdMapping:
    """One range of ids of a user namespace."""

    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """User namespace options; mode NODE means none."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """Which namespaces are shared with whom."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns: UserNamespace | None = None


@dataclass(frozen=True, slots=True)
class SelinuxOptions:
    """SELinux label parts."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    """A seccomp or AppArmor profile by kind; `localhost_ref` is a path or name for LOCALHOST."""

    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class HugepageLimit:
    """Limit in bytes for one huge page size (like `2MB`)."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class Resources:
    """cgroup settings; 0 and "" mean not given (CRI `LinuxContainerResources`). Memory in bytes, times in µs."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SandboxSecurity:
    """Security context of a sandbox."""

    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """A pod sandbox as asked for (CRI `PodSandboxConfig` + `LinuxPodSandboxConfig`)."""

    metadata: Metadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: Resources | None = None
    resources: Resources | None = None
    security: SandboxSecurity = SandboxSecurity()


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image as named in a request."""

    image: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of the request; `host_path` is resolved by `pods/` before planning."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: Propagation = Propagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the request; permissions is a subset of `rwm`."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Names with or without `CAP_`, any case; `ALL` is allowed."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """Security context of a container."""

    capabilities: Capabilities = Capabilities()
    privileged: bool = False
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """A container as asked for (CRI `ContainerConfig` + `LinuxContainerConfig`).

    `envs` holds (name, value) with raw bytes as value; `stop_signal` is the CRI enum's name without `SIGNAL_`
    (like `SIGTERM`, `SIGRTMINPLUS3`), or "".
    """

    metadata: ContainerMetadata
    image: ImageSpec = ImageSpec()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, bytes], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    cdi_devices: tuple[str, ...] = ()
    stop_signal: str = ""
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image's config says about running it (OCI image-spec, config.md)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """The ids a container runs with, as the child found them in the finished root."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
