"""A netlink socket in another network namespace, while the caller stays in its own.

setns(2) moves one thread, so a thread of its own goes there, opens the socket, and ends; a thread of a pool would stay
there if the way back failed. Invariant: no thread that lives on ever leaves its namespace.
"""

import errno
import os
import threading

from crishim.errors import KernelError
from crishim.linux import calls
from crishim.linux.netlink.connection import Connection


def connect(path: str) -> Connection:
    """Open a route socket that acts in the network namespace at `path`.

    Raises:
        KernelError: there is no namespace at the path, or it may not be joined.
    """
    opened: list[Connection] = []
    failures: list[KernelError] = []

    def enter() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                calls.setns(fd, calls.CLONE_NEWNET, path)
            finally:
                os.close(fd)
            opened.append(Connection())
        except KernelError as error:
            failures.append(error)
        except OSError as error:
            failures.append(KernelError(f"enter network namespace {path}", error.errno or errno.EIO))

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return opened[0]
