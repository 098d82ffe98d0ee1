"""A group's control files and members: read, write, list. Imports nothing but os and errno (see `apply`)."""

import errno
import os
from collections.abc import Iterable, Sequence

GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel answers for a group that was removed: before opening a file of it, and after."""


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


def children(directory: str) -> list[str]:
    """Return the directories of the groups right below one; none if it is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def pids(dirs: Sequence[str]) -> list[int]:
    """Return the processes of the group and of the groups below it; none if it is gone."""
    found: list[int] = []
    waiting = [deciding(dirs)]
    while waiting:
        directory = waiting.pop()
        try:
            found += map(int, _read_whole(directory, "cgroup.procs").split())
        except OSError as error:
            if error.errno in GONE:
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


def deciding(dirs: Sequence[str]) -> str:
    """Return the directory that decides who belongs to the group: v2's, else the freezer's, else the first."""
    for directory in dirs:
        if os.access(f"{directory}/cgroup.freeze", os.F_OK) or os.access(f"{directory}/freezer.state", os.F_OK):
            return directory
    return dirs[0]
