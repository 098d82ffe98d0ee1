"""What the kernel tells of a process in /proc/<pid>/stat (proc_pid_stat(5))."""

import os

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
