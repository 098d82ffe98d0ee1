"""The mounts of a container, in the order of their application. Pure.

First what every container has (/proc, /dev, /dev/pts, /dev/shm, /dev/mqueue, /sys, /sys/fs/cgroup), then its image's
volumes, the pod's files, the request's mounts in their given order, and masks. Sources: OCI runtime-spec
config-linux.md (default file systems and devices), Kubernetes KEP-1769 for which files a pod's containers share.
"""

from collections.abc import Sequence
from os.path import basename, normpath

from crishim.engine.plan.host import HostView
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import (
    Bind,
    CgroupView,
    DeviceNode,
    Devices,
    MaskPaths,
    MountFs,
    MountOperation,
    PodFile,
    PodShm,
    ReadonlyPaths,
    Terminal,
)
from crishim.linux.calls import MOUNT_ATTR_NODEV as NODEV
from crishim.linux.calls import MOUNT_ATTR_NOEXEC as NOEXEC
from crishim.linux.calls import MOUNT_ATTR_NOSUID as NOSUID
from crishim.linux.calls import MOUNT_ATTR_RDONLY as RDONLY
from crishim.request import ContainerConfig, Mount, NamespaceMode

DEFAULT_NODES = (
    DeviceNode("null", "c", 1, 3),
    DeviceNode("zero", "c", 1, 5),
    DeviceNode("full", "c", 1, 7),
    DeviceNode("random", "c", 1, 8),
    DeviceNode("urandom", "c", 1, 9),
    DeviceNode("tty", "c", 5, 0),
)
_LINKS = (
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
)
_SYSTEM = ("/proc", "/sys", "/dev")
_POD_FILES = (("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf"))


def plan_mounts(
    config: ContainerConfig, host: HostView, group: str, settings: PlanSettings, volumes: Sequence[Mount] = ()
) -> tuple[MountOperation, ...]:
    """Return all mount operations of a container.

    Args:
        config: the request.
        host: what the host tells of it.
        group: its control group, shown at /sys/fs/cgroup.
        settings: of the instance.
        volumes: the directories that it has for its image's volumes; what the request mounts lies over them.
    """
    privileged = config.security.privileged
    host_ipc = config.security.namespaces.ipc is NamespaceMode.NODE
    taken = {place_of(mount.container_path) for mount in config.mounts}
    operations = [*_base(privileged=privileged, host_ipc=host_ipc, taken=taken, nodes=host.nodes)]
    if "/sys/fs/cgroup" not in taken and "/sys" not in taken:
        operations.append(_cgroup_view(group, settings, readonly=not privileged))
    if config.tty:
        operations.append(Terminal())
    # Whoever made the image asked for a place to write: that holds on a read-only root too.
    operations += [
        Bind(volume.host_path, volume.container_path, directory=True, recursive=False, attributes=NOSUID | NODEV)
        for volume in volumes
    ]
    operations += [
        PodFile(name, target, readonly=config.security.readonly_rootfs)
        for name, target in _POD_FILES
        if target not in taken
    ]
    operations += [_request_mount(mount, directory=mount.host_path in host.directories) for mount in config.mounts]
    if not privileged:
        if config.security.masked_paths:
            operations.append(MaskPaths(config.security.masked_paths))
        if config.security.readonly_paths:
            operations.append(ReadonlyPaths(config.security.readonly_paths))
    return tuple(operations)


def volume_paths(volumes: Sequence[str], mounts: Sequence[Mount]) -> list[str]:
    """Return where an image's volumes lie that the request does not cover by mounts of its own."""
    places = {place_of(f"/{path}") for path in volumes}
    return sorted(place for place in places if takes_volume(place, mounts))


def takes_volume(place: str, mounts: Sequence[Mount]) -> bool:
    """Tell whether a volume of the image may be at a place: not at the root, nor where something else is mounted."""
    above = {place_of(mount.container_path) for mount in mounts} | set(_SYSTEM)
    return place != "/" and not any(place == top or place.startswith(f"{top}/") for top in above)


def place_of(path: str) -> str:
    """Return a container path in its plain form; "" and relative paths stay relative.

    POSIX lets two leading slashes stand, and normpath keeps them: `//proc` is /proc all the same.
    """
    if not path.startswith("/"):
        return normpath(path) if path else ""
    return normpath("/" + path.lstrip("/"))


def _base(*, privileged: bool, host_ipc: bool, taken: set[str], nodes: Sequence[DeviceNode]) -> list[MountOperation]:
    """What every container has; a mount of the request over one of them (but /proc and /dev) takes its place."""
    own = {node.path for node in nodes}
    devices = (*(node for node in DEFAULT_NODES if node.path not in own), *nodes)
    known: list[tuple[str, MountOperation]] = [
        ("/proc", MountFs("/proc", "proc", NOSUID | NOEXEC | NODEV)),
        ("/dev", MountFs("/dev", "tmpfs", NOSUID, (("mode", "755"), ("size", "64m")))),
        ("/dev", Devices("/dev", devices, _LINKS, ("pts", "shm", "mqueue"))),
        (
            "/dev/pts",
            MountFs("/dev/pts", "devpts", NOSUID | NOEXEC, (("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"))),
        ),
        ("/dev/shm", Bind("/dev/shm", "/dev/shm", directory=True) if host_ipc else PodShm("/dev/shm")),
        ("/dev/mqueue", MountFs("/dev/mqueue", "mqueue", NOSUID | NOEXEC | NODEV)),
        ("/sys", MountFs("/sys", "sysfs", NOSUID | NOEXEC | NODEV | (0 if privileged else RDONLY))),
    ]
    return [operation for target, operation in known if target not in taken or target in {"/proc", "/dev"}]


def _cgroup_view(group: str, settings: PlanSettings, *, readonly: bool) -> CgroupView:
    layout = settings.layout
    directories = layout.directories(group)
    if layout.version == 2:
        return CgroupView("/sys/fs/cgroup", readonly, (("", directories[0]),))
    named = [
        (basename(place.mountpoint), directory)
        for place, directory in zip(layout.hierarchies, directories, strict=True)
    ]
    links = [
        (basename(place.mountpoint), controller)
        for place in layout.hierarchies
        for controller in place.controllers
        if controller != basename(place.mountpoint)
    ]
    return CgroupView("/sys/fs/cgroup", readonly, tuple(named), tuple(links))


def _request_mount(mount: Mount, *, directory: bool) -> Bind:
    return Bind(
        source=mount.host_path,
        target=mount.container_path,
        directory=directory,
        recursive=True,
        readonly=mount.readonly,
        readonly_recursive=mount.recursive_read_only,
        resolved=True,
    )
