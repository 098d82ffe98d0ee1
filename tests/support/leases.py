"""A file that nobody else can open: its opener waits until the lease is given up, or /proc/sys/fs/lease-break-time."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leased(path: str) -> Iterator[None]:
    """Hold a write lease on a file (fcntl(2), F_SETLEASE)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)
        while signal.sigtimedwait({signal.SIGIO}, 0):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
