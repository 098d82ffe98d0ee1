"""Plans: frozen data that says, operation by operation, what the executor will do. Nothing here acts.

A plan is computed in the daemon from the request, the image's config and the host's facts; it can be printed,
compared and recomputed. The executor (`engine/execute`) gets it as JSON with every field written out, and maps each
operation's type to one function; it knows nothing of CRI. A change of meaning raises `PLAN_VERSION`; keepers of the
last two versions are spoken to in their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.codec import tagged
from crishim.constants import SHM_SIZE
from crishim.linux.cgroups.settings import Write
from crishim.linux.rlimits import Rlimit

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class CgroupPlan:
    """One control group: its directory in each hierarchy (one on v2), settings in order, v2's device program."""

    version: int
    directories: tuple[str, ...]
    writes: tuple[Write, ...] = ()
    device_program: bytes = b""


# --- mounts, in the order in which they are applied ---------------------------------------------------------------


@tagged
@dataclass(frozen=True, slots=True)
class MountFs:
    """Mount a new file system at `target` (below the root). `attributes` are MOUNT_ATTR_*, options fsconfig pairs."""

    target: str
    fstype: str
    attributes: int
    options: tuple[tuple[str, str], ...] = ()


@tagged
@dataclass(frozen=True, slots=True)
class Bind:
    """Clone the host's tree at `source` and attach it at `target` (below the root; made as `directory` or file).

    `recursive` includes the mounts below; `readonly` covers the top mount only, `readonly_recursive` all of them.
    `resolved`: the source is free of symbolic links, and one that came since then is not followed.
    """

    source: str
    target: str
    directory: bool
    recursive: bool = True
    readonly: bool = False
    readonly_recursive: bool = False
    attributes: int = 0
    resolved: bool = False


@tagged
@dataclass(frozen=True, slots=True)
class PodShm:
    """Attach the shared memory of the pod's own tmpfs (held by the keeper)."""

    target: str


@tagged
@dataclass(frozen=True, slots=True)
class PodFile:
    """Attach the file `name` of the pod's own tmpfs, as a file that gives nobody rights."""

    name: str
    target: str
    readonly: bool = False


@tagged
@dataclass(frozen=True, slots=True)
class Devices:
    """Fill the fresh tmpfs mounted at `target`: device nodes, links and directories (all relative to it)."""

    target: str
    nodes: tuple["DeviceNode", ...]
    links: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """One node; `kind` is `c` or `b`; mode holds permission bits only; `access` is what its group allows."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


@tagged
@dataclass(frozen=True, slots=True)
class CgroupView:
    """Show the container's own control groups at `target`: v2 directly, v1 one directory per hierarchy."""

    target: str
    readonly: bool
    hierarchies: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...] = ()


@tagged
@dataclass(frozen=True, slots=True)
class Terminal:
    """Open the terminal on the new devpts at `/dev/pts`, bind it to /dev/console and make it the process's own."""

    columns: int = 0
    rows: int = 0


@tagged
@dataclass(frozen=True, slots=True)
class MaskPaths:
    """Cover files with /dev/null and directories with an empty read-only tmpfs; what does not exist is skipped."""

    paths: tuple[str, ...]


@tagged
@dataclass(frozen=True, slots=True)
class ReadonlyPaths:
    """Make paths read-only by a bind over themselves; what does not exist is skipped."""

    paths: tuple[str, ...]


MountOperation = MountFs | Bind | PodShm | PodFile | Devices | CgroupView | Terminal | MaskPaths | ReadonlyPaths


@dataclass(frozen=True, slots=True)
class OverlayRoot:
    """The root file system: `lower` top layer first, one read/write layer; mounted in the container's namespace only.

    `append`: the kernel takes layers one by one (`lowerdir+`, Linux 6.8), so no option string limits their number.
    `base` is the directory that the lower paths are relative to.
    """

    base: str
    lower: tuple[str, ...]
    upper: str
    work: str
    readonly: bool
    append: bool = False
    options: tuple[str, ...] = ()


# --- the process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserPlan:
    """The user as asked for; names are looked up by the child in the finished root.

    Args:
        user: `""` (root), a number or a name.
        group: `""` (the user's primary group), a number or a name.
        groups: supplementary groups of the request.
        image_groups: whether the image's group file adds the user's groups (policy Merge).
    """

    user: str = ""
    group: str = ""
    groups: tuple[int, ...] = ()
    image_groups: bool = True


@dataclass(frozen=True, slots=True)
class CapabilityPlan:
    """Capability sets as 64-bit masks (capabilities(7))."""

    bounding: int
    permitted: int
    ambient: int = 0


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What is executed, and with which rights. `env` holds raw `NAME=value` bytes as latin-1 text.

    `seccomp` is the filter program, `seccomp_flags` the SECCOMP_FILTER_FLAG_* bits that it is installed with.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: UserPlan
    capabilities: CapabilityPlan
    no_new_privs: bool
    seccomp: bytes
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    umask: int = 0o022
    terminal: bool = False
    seccomp_flags: int = 0


@dataclass(frozen=True, slots=True)
class StdioPlan:
    """Where the container's output goes: `log_path` "" drops it; `stdin` keeps a pipe open for attach."""

    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything about one container.

    `pid` is `new` (an own PID namespace), `pod` (the pod's shared one), `host`, or `container:<id>` (that
    container's). The network, IPC and UTS namespaces are the keeper's own and need no mention. `shared`: until it
    execs, the first process may share the keeper's memory, which stops the keeper for as long.
    """

    container_id: str
    pod_id: str
    pid: str
    cgroup_namespace: bool
    cgroup: CgroupPlan
    root: OverlayRoot
    mounts: tuple[MountOperation, ...]
    process: ProcessPlan
    stdio: StdioPlan
    shared: bool = False
    version: int = PLAN_VERSION


@dataclass(frozen=True, slots=True)
class ExecPlan:
    """A further process in a running container."""

    container_id: str
    process: ProcessPlan
    cgroup: CgroupPlan
    version: int = PLAN_VERSION


@dataclass(frozen=True, slots=True)
class PodPlan:
    """Everything about one pod's keeper.

    `directory` is the pod's own below `<state>/pods`, `empty` an empty one on which roots are attached;
    `namespaces` is a subset of `net`, `ipc`, `uts`; `pin` is where the network namespace is bound ("" for none);
    `sysctls` are paths below /proc/sys with their values; `shm_size` in bytes, 0 for the host's /dev/shm.
    """

    pod_id: str
    directory: str
    empty: str
    namespaces: tuple[str, ...]
    pin: str
    hostname: str
    cgroup: CgroupPlan
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_size: int = SHM_SIZE
    version: int = PLAN_VERSION
