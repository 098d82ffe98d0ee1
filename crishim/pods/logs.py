"""Where a container's log goes: inside the sandbox's log directory, or nowhere.

`log_path` is relative to `log_directory` (CRI); an empty one of either means no log. The path may not lead out of
the directory, by `..` or by a symlink. Whoever has a log directory as a volume can change it at any
time, so links are followed once, in the log directory's own path when its sandbox is made (root may have put it
elsewhere); from then on each directory is made and each log opened by a path in which no link is followed. The keeper
creates the file (`engine.keeper.logs`), so it exists when StartContainer returns. Out of scope: the format and
rotation (keeper).
"""

import contextlib
import errno
import os

from crishim.errors import FailedPreconditionError, KernelError
from crishim.linux import calls
from crishim.pods.records import SandboxSpec
from crishim.problems import Problems

FIELD = "config.log_path"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


def resolve(directory: str) -> str:
    """Return the path without links of a new sandbox's log directory, which need not be there yet; "" for none."""
    return os.path.realpath(directory) if directory else ""


def log_file(problems: Problems, directory: str, log_path: str) -> str:
    """Return the absolute path of the log, "" for none; nothing is touched.

    Args:
        problems: of the request; a path that a link leads out of the directory is added.
        directory: the sandbox's log directory.
        log_path: a relative path of a file that does not climb (`admission.names`).
    """
    if not directory or not log_path:
        return ""
    root = os.path.normpath(directory)
    path = os.path.normpath(os.path.join(root, log_path))
    real = os.path.realpath(os.path.dirname(path))
    inside = os.path.realpath(root)
    if real != inside and not real.startswith(f"{inside}/"):
        problems.add(FIELD, f"{log_path!r} leads out of the log directory to {real!r} by a symlink")
    return path


def placed(spec: SandboxSpec, path: str) -> str:
    """Return the path without links of a log in the sandbox's log directory; `path` is what `log_file` gave."""
    if not path:
        return ""
    directory = os.path.normpath(spec.config.log_directory)
    # a sandbox from before its directory was recorded has it resolved now
    return (spec.log_directory or os.path.realpath(directory)) + path.removeprefix(directory)


def ensure_directory(path: str) -> None:
    """Make the directory that the log file `path` (see `placed`) lies in; nothing for "".

    Raises:
        FailedPreconditionError: a link is in the way.
        KernelError: it cannot be made.
    """
    if not path:
        return
    directory = os.path.dirname(path)
    try:
        os.close(_ensure(directory))
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise FailedPreconditionError(
                f"{FIELD}: a symbolic link or a file is on the way to the log directory {directory}, which it was not"
                " when the sandbox was made: remove it"
            ) from None
        raise KernelError(f"make the log directory {directory}", error.errno or 0) from None


def _ensure(directory: str) -> int:
    """Open a directory, making it and those above where they are missing."""
    try:
        return calls.openat2(calls.AT_FDCWD, directory, _DIRECTORY, 0, calls.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        above = _ensure(os.path.dirname(directory))
    try:
        name = os.path.basename(directory)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=above)
        return calls.openat2(above, name, _DIRECTORY, 0, calls.RESOLVE_NO_SYMLINKS)
    finally:
        os.close(above)
