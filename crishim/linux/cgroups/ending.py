"""Ending a group: freeze, kill, count OOM kills, remove. Imports nothing but os, errno and time (see `apply`)."""

import errno
import os
import time
from collections.abc import Sequence

from crishim.linux.cgroups.files import GONE, children, deciding, pids, read, write

SIGKILL = 9


def kill(dirs: Sequence[str], version: int) -> None:
    """Send SIGKILL to every process of the group and of the groups below it, frozen or not.

    On v2 by `cgroup.kill`, which misses no process that forks meanwhile. On v1 the group is frozen, everything in it
    gets the signal, and it is thawed. Does not wait for the processes to be reaped.
    """
    if version == 2:
        try:
            write(dirs[0], "cgroup.kill", "1")
        except OSError as error:
            if error.errno not in GONE:
                raise
        return
    if pids(dirs):
        _kill_frozen(dirs)
    # A frozen task takes its SIGKILL only once thawed.
    _thaw_legacy(dirs)


def _kill_frozen(dirs: Sequence[str]) -> None:
    directory = deciding(dirs)
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
    directory = deciding(dirs)
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
        if error.errno not in GONE:
            raise
    _thaw_legacy(dirs)


def _thaw_legacy(dirs: Sequence[str]) -> None:
    for directory in dirs:
        try:
            if not read(directory, "freezer.state").startswith(b"THAWED"):
                write(directory, "freezer.state", "THAWED")
        except OSError as error:
            if error.errno not in GONE:
                raise


def is_empty(dirs: Sequence[str]) -> bool:
    """Tell whether no process is left in the group and below; a group that is gone is empty."""
    try:
        return b"populated 0" in read(dirs[0], "cgroup.events")
    except OSError as error:
        if error.errno not in GONE:
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
        if error.errno in GONE:
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
        if error.errno in GONE:
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
        if error.errno in GONE:
            return 0
        raise
    return own + sum(map(_legacy_oom_kills, children(directory)))


def _counter(text: bytes, key: bytes) -> int:
    for line in text.split(b"\n"):
        if line.startswith(key):
            return int(line[len(key) :])
    return 0
