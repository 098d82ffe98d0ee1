"""Making a group in every hierarchy, and joining it. Imports nothing but os and errno (see `apply`)."""

import errno
import os
from collections.abc import Sequence

from crishim.linux.cgroups.files import read, write

_V2_CONTROLLERS = (b"cpuset", b"cpu", b"io", b"memory", b"hugetlb", b"pids")


def make(dirs: Sequence[str], *, parent: bool = False) -> None:
    """Make a group in every hierarchy, with the groups above it; a group that exists is left as it is.

    On v1 a new cpuset group takes the cpus and nodes of the group above it, without which nothing could join it. On
    v2 the controllers are passed on from the group above.

    Args:
        dirs: the group's directories.
        parent: other groups will be made below this one: v1 cpuset groups below it then inherit by themselves.

    Raises:
        OSError: a directory or a controller could not be made available; nothing is undone.
    """
    for directory in dirs:
        _make_one(directory, parent=parent, alone=len(dirs) == 1)


def _make_one(directory: str, *, parent: bool, alone: bool) -> None:
    try:
        os.mkdir(directory, 0o755)
        made = True
    except FileExistsError:
        made = False
    except FileNotFoundError:
        _make_one(os.path.dirname(directory), parent=True, alone=alone)
        os.mkdir(directory, 0o755)
        made = True
    if alone and not os.access(f"{directory}/cgroup.clone_children", os.F_OK):
        _pass_controllers_on(os.path.dirname(directory))
    elif os.access(f"{directory}/cpuset.cpu_exclusive", os.F_OK):
        if made:
            _inherit_cpuset(directory)
        if parent:
            write(directory, "cgroup.clone_children", "1")


def _pass_controllers_on(directory: str) -> None:
    """Enable every controller that crishim uses for the children of a v2 group."""
    try:
        available = read(directory, "cgroup.controllers").split()
        enabled = read(directory, "cgroup.subtree_control").split()
    except FileNotFoundError:  # above the mount's root
        return
    wanted = [c for c in _V2_CONTROLLERS if c not in enabled]
    if not wanted:
        return
    if any(c not in available for c in wanted):
        _pass_controllers_on(os.path.dirname(directory))
        available = read(directory, "cgroup.controllers").split()
    value = " ".join(f"+{c.decode()}" for c in wanted if c in available)
    if value:
        write(directory, "cgroup.subtree_control", value)


def _inherit_cpuset(directory: str) -> None:
    """Give a new v1 cpuset group the cpus and memory nodes of the one above (cgroup-v1/cpusets.rst, 1.5)."""
    above = os.path.dirname(directory)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not read(directory, file).strip():
            value = read(above, file).strip()
            if not value:
                _inherit_cpuset(above)
                value = read(above, file).strip()
            write(directory, file, value.decode())


def join_self(dirs: Sequence[str], version: int, *, born_unified: bool = False) -> None:
    """Move the calling (single-threaded) process into the group.

    On v1 through `tasks`: a process that moves itself there needs no grace period, `cgroup.procs` may wait 5-13 ms.

    Args:
        dirs: the group's directories.
        version: of the layout.
        born_unified: the process was made in `dirs[0]` by CLONE_INTO_CGROUP already.

    Raises:
        OSError: EBUSY on v2 if the group passes controllers on to children (see `leaf`).
    """
    if version == 2:
        if not born_unified:
            write(dirs[0], "cgroup.procs", "0")
        return
    for directory in dirs:
        write(directory, "tasks", "0")


def join_watched(dirs: Sequence[str]) -> None:
    """Move the calling process into a group's directories in hierarchies without controllers (`Layout.watched`)."""
    for directory in dirs:
        write(directory, "cgroup.procs", "0")


def leaf(pid: int, mountpoint: str) -> str:
    """Return the v2 directory that process `pid` is in, for an exec into a container that made groups of its own.

    Args:
        pid: as the caller's PID namespace knows it; the caller's cgroup namespace must be the host's.
        mountpoint: of the v2 hierarchy.
    """
    fd = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 65536)
    finally:
        os.close(fd)
    for line in text.split(b"\n"):
        if line.startswith(b"0::/"):
            return mountpoint + os.fsdecode(line[3:]).rstrip("/")
    raise OSError(errno.ENOENT, "no v2 group of process", f"/proc/{pid}/cgroup")
