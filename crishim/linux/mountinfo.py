"""The mount table of this process (proc_pid_mountinfo(5))."""

import os
import re

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def mount_points() -> list[str]:
    """Return every mount point, in the order of the table; one that is mounted over appears several times."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().split(b"\n")
    return [os.fsdecode(_unescape(line.split(b" ", 5)[4])) for line in lines if line]


def is_mount_point(path: str) -> bool:
    """Tell whether something is mounted exactly at `path`.

    Unlike os.path.ismount this sees a bind mount of a directory onto itself.
    """
    return os.path.realpath(path) in mount_points()


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)
