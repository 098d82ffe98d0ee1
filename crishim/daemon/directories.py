"""The instance's directories: made with the modes that their use needs, and refused where others could write.

`root` and `state` and what containers reach through them are 0711: processes of user namespaces pass, nobody lists.
Blobs are 0700. Directories above them are the host's: a missing o+x there is `crishim check`'s to report.
Out of scope: what stands below them, and the mounts (engine).
"""

import os
import stat

from crishim.errors import FailedPreconditionError, KernelError
from crishim.paths import Paths

PASSABLE = 0o711
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
    for path, mode in (
        (paths.root, PASSABLE),
        (paths.state, PASSABLE),
        (paths.images or paths.root, PASSABLE),
        (paths.content, PRIVATE),
        (paths.layers, PASSABLE),
        (paths.containers, PASSABLE),
        (paths.pods, PASSABLE),
        (paths.namespaces, PASSABLE),
        (paths.empty, PASSABLE),
    ):
        _ensure(path, mode)


def _make_all(path: str) -> None:
    """Make a directory with all above it, each 0755 whatever the umask."""
    if os.path.isdir(path):
        return
    _make_all(os.path.dirname(path))
    _make(path)
    os.chmod(path, 0o755)


def _ensure(path: str, mode: int) -> None:
    if not os.path.isdir(path):
        _make(path)
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


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
