"""The null device that a container's processes get as stdin: always the container's own.

Whoever has an fd may change its inode's mode, owner, times and attributes through /proc/<pid>/fd, with CAP_FOWNER or
CAP_CHOWN, which containers have by default. So no process of a container gets an fd of the host's node.
"""

import fcntl
import os
import stat

from crishim.linux import calls

_DEVICE = os.makedev(1, 3)


def is_null(status: os.stat_result) -> bool:
    """Tell whether this is a node of the null device."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEVICE


def of_this_root() -> int:
    """Return the /dev/null of the root that the process is in; where there is none, an empty pipe reads the same."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY  # it may be anything by now, and must hold nobody up
    resolve = calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
    try:
        fd = calls.openat2(calls.AT_FDCWD, "/dev/null", flags, 0, resolve)
    except OSError:
        return _empty_pipe()
    if not is_null(os.fstat(fd)):
        os.close(fd)
        return _empty_pipe()
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR)
    return fd


def _empty_pipe() -> int:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(writing)
    return reading
