"""What the kernel tells of processes: of one in /proc/<pid>/stat (proc_pid_stat(5)), of a group's by counting."""

import os
import resource
from collections.abc import Sequence
from typing import NamedTuple

# Places among the fields after the process's name, which is put in brackets and may hold anything
STATE, PARENT, SESSION, FLAGS, START_TIME, ARGUMENTS_START, ARGUMENTS_END = 0, 1, 3, 6, 19, 45, 46


def stat_fields(pid: int | str) -> list[bytes]:
    """Return the fields after the name of a process; `pid` may be `self`.

    Raises:
        OSError: there is no such process.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return text[text.rindex(b")") + 2 :].split()


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if there is no such process."""
    try:
        return int(stat_fields(pid)[START_TIME])
    except (OSError, ValueError):
        return 0


class Census(NamedTuple):
    """The processes of a group together; `open_files` is the first one's soft limit of descriptors."""

    processes: int
    descriptors: int
    sockets: int
    open_files: int | None


def census(directory: str) -> Census | None:
    """Count the processes of a control group's directory and what they have open; None if the group is gone.

    It takes a system call a descriptor (proc_pid_fd(5)), so it is work for a thread.
    """
    try:
        with open(f"{directory}/cgroup.procs", "rb", buffering=0) as file:
            pids = file.read().split()
    except OSError:
        return None
    descriptors = sockets = 0
    for pid in pids:
        names, connected = _open_descriptors(f"/proc/{pid.decode()}/fd")
        descriptors += names
        sockets += connected
    return Census(len(pids), descriptors, sockets, _soft_limit(pids))


def _open_descriptors(directory: str) -> tuple[int, int]:
    """Return how many descriptors a process has, and how many of them are sockets; one that has ended has none."""
    try:
        names = os.listdir(directory)
    except OSError:
        return 0, 0
    sockets = 0
    for name in names:
        try:
            sockets += os.readlink(f"{directory}/{name}").startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return len(names), sockets


def _soft_limit(pids: Sequence[bytes]) -> int | None:
    for pid in pids:
        try:
            return resource.prlimit(int(pid), resource.RLIMIT_NOFILE)[0]
        except (OSError, ValueError):
            continue
    return None
