"""The lock that makes one daemon the only one of its root and its state directory.

flock(2) on a file that stays: the kernel lets go of it when the daemon ends, however it ends. The descriptor is
close-on-exec, so that neither the spawner nor a keeper holds it on. The file's text names the daemon for people.
"""

import fcntl
import os

from crishim.errors import FailedPreconditionError, KernelError


class Lock:
    """A held lock; `release` or the end of the process lets it go."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; the file stays, so that nobody can lock a removed one. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def acquire(path: str, what: str) -> Lock:
    """Take the lock at once or not at all.

    Args:
        path: the lock file; made if it is missing.
        what: what it stands for, in the error's sentence, like `the root /var/lib/crishim`.

    Raises:
        FailedPreconditionError: another daemon has it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or 0) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise FailedPreconditionError(
            f"another daemon{f' (process {holder})' if holder else ''} serves {what}: "
            "stop it, or give this one a root, a state and an image path of its own"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return Lock(path, descriptor)
