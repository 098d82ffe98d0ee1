"""The instance's directories: made with the modes that their use needs, and refused where others could write.

All are 0700, those of an earlier version included: whoever is root in a container makes setuid programs and device
nodes in its read/write layer, and no user of the host may reach them by a path. Containers need none: their first
process gets at everything before it lowers its rights, and what it holds is a mount or an fd.
Out of scope: what stands below them, and the mounts (engine).
"""

import os
import stat

from crishim.errors import FailedPreconditionError, KernelError
from crishim.paths import Paths

PRIVATE = 0o700


def make(paths: Paths) -> None:
    """Make what is missing and set the modes.

    Raises:
        FailedPreconditionError: a directory of ours could be written by others, is no directory or another user's.
        KernelError: one cannot be made.
    """
    for path in dict.fromkeys((paths.root, paths.state, paths.images or paths.root)):
        _make_all(path)
        _refuse_foreign(path)
    for path in (
        paths.root,
        paths.state,
        paths.images or paths.root,
        paths.content,
        paths.layers,
        paths.containers,
        paths.pods,
        paths.namespaces,
        paths.empty,
    ):
        _ensure(path)


def _make_all(path: str) -> None:
    """Make a directory with all above it, each 0755 whatever the umask."""
    if os.path.isdir(path):
        return
    _make_all(os.path.dirname(path))
    _make(path)
    os.chmod(path, 0o755)  # noqa: S103  what lies above is not ours alone


def _ensure(path: str) -> None:
    if not os.path.isdir(path):
        _make(path)
    if stat.S_IMODE(os.stat(path).st_mode) != PRIVATE:
        os.chmod(path, PRIVATE)


def _make(path: str) -> None:
    try:
        os.mkdir(path)
    except OSError as error:
        raise KernelError(f"mkdir {path}", error.errno or 0) from None


def _refuse_foreign(path: str) -> None:
    found = os.stat(path)
    if found.st_uid != os.geteuid():
        raise FailedPreconditionError(
            f"{path} belongs to user {found.st_uid} and the daemon runs as {os.geteuid()}: "
            f"use 'chown {os.geteuid()} {path}' or another directory"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FailedPreconditionError(
            f"{path} can be written by other users, who could replace what containers run: use 'chmod go-w {path}'"
        )
