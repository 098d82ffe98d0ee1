"""The unix socket of the CRI: mode 0600 (umask 0177) in a directory of mode 0700, never bound over a living server.

grpc removes whatever stands at the path before it binds, so this looks first: a socket on which someone answers and a
file that is no socket are errors, a socket on which no one answers is left over and goes. A path beyond the kernel's
107 bytes (unix(7)) is reached through /proc/self/fd/<its directory>.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc.aio

from crishim.errors import AlreadyExistsError, FailedPreconditionError, KernelError

MAX_PATH = 107
UMASK = 0o177
MODE = 0o600
DIRECTORY_MODE = 0o700
"""Of a directory that is made here: only root may connect, so nobody else has anything to do in it."""


class Listener:
    """A bound socket; owns the directory's descriptor, through which grpc unlinks the socket when it stops."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._directory = -1
        self._bound: tuple[int, int] | None = None

    def bind(self, server: grpc.aio.Server) -> None:
        """Make the directory, clear a stale socket away, bind.

        Raises:
            AlreadyExistsError: a server answers on the path.
            FailedPreconditionError: the path holds something that is no socket.
            KernelError: a system call failed.
        """
        directory, name = os.path.split(self.path)
        try:
            _ensure_directory(directory)
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"open {directory} for the socket", error.errno or 0) from error
        address = self.path if len(os.fsencode(self.path)) <= MAX_PATH else f"/proc/self/fd/{self._directory}/{name}"
        try:
            ensure_free(self.path, address)
            with umask(UMASK):
                server.add_insecure_port(f"unix:{address}")
            found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError as error:
            raise KernelError(f"bind {self.path}", error.errno or 0) from error
        except RuntimeError as error:  # grpc's own error holds a dump of its call sites
            raise FailedPreconditionError(f"cannot bind {self.path}: {str(error).splitlines()[0]}") from error
        self._bound = (found.st_dev, found.st_ino)
        if stat.S_IMODE(found.st_mode) != MODE:
            raise FailedPreconditionError(f"{self.path} has mode {stat.S_IMODE(found.st_mode):o} instead of {MODE:o}")

    def close(self) -> None:
        """Let go of the directory; remove the socket if it is ours and grpc has not done so."""
        if self._directory < 0:
            return
        name = os.path.basename(self.path)
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._bound:
                os.unlink(name, dir_fd=self._directory)
        os.close(self._directory)
        self._directory = -1


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Set the process's umask for a moment."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def ensure_free(path: str, address: str) -> None:
    """Remove a socket that no one listens on; raise if the path is in use."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPreconditionError(f"{path} exists and is no socket: move it away or choose another socket path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        error = probe.connect_ex(address)
    if error in {0, errno.EAGAIN, errno.EINPROGRESS}:  # EAGAIN: a living server whose queue is full
        raise AlreadyExistsError(f"{path}: another server answers there; stop it or choose another socket path")
    if error != errno.ECONNREFUSED:
        raise KernelError(f"connect {path}", error)
    os.unlink(path)


def _ensure_directory(path: str) -> None:
    """Make the directory if it is missing; one that is there, like the state's own, keeps its mode."""
    if os.path.isdir(path):
        return
    os.makedirs(path, mode=0o755, exist_ok=True)
    os.chmod(path, DIRECTORY_MODE)
