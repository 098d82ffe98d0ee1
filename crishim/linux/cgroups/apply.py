"""The acting half of control groups: make, fill, join, freeze, kill, count and remove a group.

It runs in the spawner's and keepers' tiny processes, so it imports nothing but os, errno and time, and takes plain
lists of strings: `dirs` is `Layout.directories(group)` (the v2 directory first wherever there is one), `version` is
`Layout.version`. Out of scope: deciding values (`settings`) and the v2 device program (`bpf`).

Errors are `OSError(errno, what, path)`, where `what` is like `write memory.max=4096`. Functions that take something
away (`kill`, `thaw`, `remove`) succeed for what is already gone.

Sources: admin-guide/cgroup-v1/*.rst and cgroup-v2.rst of the kernel; cgroups(7).
"""

import errno
import os
import time
from collections.abc import Iterable, Sequence

SIGKILL = 9
_GONE = (errno.ENOENT, errno.ENODEV)
_V2_CONTROLLERS = (b"cpuset", b"cpu", b"io", b"memory", b"hugetlb", b"pids")


def read(directory: str, file: str) -> bytes:
    """Return a control file's content (at most 64 KiB; longer ones are of no interest here)."""
    fd = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def write(directory: str, file: str, value: str) -> None:
    """Write one value.

    Raises:
        OSError: with the text `write memory.max=4096` and the directory as file name.
    """
    try:
        fd = os.open(f"{directory}/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"write {file}={value}", directory) from None


def write_all(writes: Iterable[Sequence[str]]) -> None:
    """Do `(directory, file, value)` writes in their order; the first failure ends it."""
    for directory, file, value in writes:
        write(directory, file, value)


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
        try:
            os.mkdir(directory, 0o755)
            made = True
        except FileExistsError:
            made = False
        except FileNotFoundError:
            make([os.path.dirname(directory)], parent=True)
            os.mkdir(directory, 0o755)
            made = True
        if not os.access(f"{directory}/cgroup.clone_children", os.F_OK):
            _pass_controllers_on(os.path.dirname(directory))
        elif os.access(f"{directory}/cpuset.cpus", os.F_OK):
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
    rest = list(dirs)
    if version == 2 or os.access(f"{dirs[0]}/cgroup.subtree_control", os.F_OK):
        rest = rest[1:]
        if not born_unified:
            write(dirs[0], "cgroup.procs", "0")
    for directory in rest:
        write(directory, "tasks", "0")


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


def children(directory: str) -> list[str]:
    """Return the directories of the groups right below one; none if it is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def pids(dirs: Sequence[str]) -> list[int]:
    """Return the processes of the group and of the groups below it; none if it is gone."""
    found: list[int] = []
    waiting = [_killing(dirs)]
    while waiting:
        directory = waiting.pop()
        try:
            found += map(int, _read_whole(directory, "cgroup.procs").split())
        except OSError as error:
            if error.errno in _GONE:
                continue
            if error.errno != errno.EOPNOTSUPP:  # a threaded v2 group lists no processes; its domain does
                raise
        waiting += children(directory)
    return found


def _read_whole(directory: str, file: str) -> bytes:
    """Return a control file of any length; the kernel hands out seq files by the page."""
    fd = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _killing(dirs: Sequence[str]) -> str:
    """Return the directory that decides who belongs to the group: v2's, else the freezer's, else the first."""
    for directory in dirs:
        if os.access(f"{directory}/cgroup.freeze", os.F_OK) or os.access(f"{directory}/freezer.state", os.F_OK):
            return directory
    return dirs[0]


def kill(dirs: Sequence[str], version: int) -> None:
    """Send SIGKILL to every process of the group and of the groups below it, frozen or not.

    With a v2 directory (v2 and hybrid hosts) by `cgroup.kill`, which misses no process that forks meanwhile. On a
    legacy host the group is frozen, everything in it gets the signal, and it is thawed. Does not wait for the
    processes to be reaped.
    """
    try:
        write(dirs[0], "cgroup.kill", "1")
    except OSError as error:
        if error.errno not in _GONE:
            raise
        if version == 2:
            return
        _kill_frozen(dirs)
    # A v1-frozen task takes its SIGKILL only once thawed; a v2-frozen one at once.
    _thaw_legacy(dirs)


def _kill_frozen(dirs: Sequence[str]) -> None:
    directory = _killing(dirs)
    if not os.access(f"{directory}/cgroup.procs", os.F_OK):
        return
    freeze(dirs, 1)
    # Frozen processes cannot fork. Where freezing stays incomplete (a task in D state), repeat for late forks.
    for _ in range(8):
        alive = pids(dirs)
        for pid in alive:
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                continue
        if not alive or _is_frozen(directory):
            return


def freeze(dirs: Sequence[str], version: int, *, patience: float = 0.1) -> bool:
    """Stop all processes of the group; tell whether it is wholly frozen within `patience` seconds."""
    directory = _killing(dirs)
    if version == 2 or os.access(f"{directory}/cgroup.freeze", os.F_OK):
        write(directory, "cgroup.freeze", "1")
    else:
        write(directory, "freezer.state", "FROZEN")
    until = time.monotonic() + patience
    while not _is_frozen(directory):
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _is_frozen(directory: str) -> bool:
    try:
        return b"frozen 1" in read(directory, "cgroup.events")
    except FileNotFoundError:
        return read(directory, "freezer.state").startswith(b"FROZEN")


def thaw(dirs: Sequence[str]) -> None:
    """Let the group's processes go on, whichever freezer holds them."""
    try:
        write(dirs[0], "cgroup.freeze", "0")
    except OSError as error:
        if error.errno not in _GONE:
            raise
    _thaw_legacy(dirs)


def _thaw_legacy(dirs: Sequence[str]) -> None:
    for directory in dirs:
        try:
            if not read(directory, "freezer.state").startswith(b"THAWED"):
                write(directory, "freezer.state", "THAWED")
        except OSError as error:
            if error.errno not in _GONE:
                raise


def is_empty(dirs: Sequence[str]) -> bool:
    """Tell whether no process is left in the group and below; a group that is gone is empty."""
    try:
        return b"populated 0" in read(dirs[0], "cgroup.events")
    except OSError as error:
        if error.errno not in _GONE:
            raise
    return not pids(dirs)


def remove(dirs: Sequence[str], *, patience: float = 0.5) -> None:
    """Remove the group, with the groups below it, in every hierarchy.

    Args:
        dirs: the group's directories; what is gone already is no error.
        patience: seconds to wait for dying processes to leave.

    Raises:
        OSError: EBUSY if processes are still there after that; the text says how many.
    """
    until = time.monotonic() + patience
    pause = 0.0005
    left = [directory for directory in dirs if not _remove_tree(directory)]
    while left:
        if time.monotonic() > until:
            count = len(pids(dirs))
            raise OSError(errno.EBUSY, f"rmdir control group: {count} processes are left in it", left[0])
        _thaw_legacy(left)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        left = [directory for directory in left if not _remove_tree(directory)]


def _remove_tree(directory: str) -> bool:
    """Remove one directory and those below it; tell whether it is gone (False: busy)."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno in _GONE:
            return True
        if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
            raise OSError(error.errno, "rmdir control group", directory) from None
    else:
        return True
    gone = [_remove_tree(child) for child in children(directory)]
    return bool(gone) and all(gone) and _remove_tree(directory)


def oom_kills(dirs: Sequence[str], version: int) -> int:
    """Return how many processes of the group, and of the groups below, the OOM killer has killed; 0 if it is gone.

    On v2 `memory.events` counts the groups below too; on v1 `memory.oom_control` counts each group by itself.
    """
    try:
        if version == 2:
            return _counter(read(dirs[0], "memory.events"), b"oom_kill ")
    except OSError as error:
        if error.errno in _GONE:
            return 0
        raise
    for directory in dirs:
        if os.access(f"{directory}/memory.oom_control", os.F_OK):
            return _legacy_oom_kills(directory)
    return 0


def _legacy_oom_kills(directory: str) -> int:
    try:
        own = _counter(read(directory, "memory.oom_control"), b"oom_kill ")
    except OSError as error:
        if error.errno in _GONE:
            return 0
        raise
    return own + sum(map(_legacy_oom_kills, children(directory)))


def _counter(text: bytes, key: bytes) -> int:
    for line in text.split(b"\n"):
        if line.startswith(key):
            return int(line[len(key) :])
    return 0
