"""Where a container's log goes: inside the sandbox's log directory, or nowhere.

`log_path` is relative to `log_directory` (CRI); an empty one of either means no log. The path may not lead out of
the directory, by `..` or by a symlink of a directory on the way. The keeper creates the file, so
it exists when StartContainer returns. Out of scope: the format and rotation (keeper).
"""

import os

from crishim.errors import InvalidArgumentError, KernelError

FIELD = "config.log_path"


def log_file(directory: str, log_path: str) -> str:
    """Return the absolute path of the log, "" for none; nothing is touched.

    Raises:
        InvalidArgumentError: the path leads out of the directory.
    """
    if not directory or not log_path:
        return ""
    root = os.path.normpath(directory)
    path = os.path.normpath(os.path.join(root, log_path))
    if log_path.startswith("/") or "\0" in log_path or not path.startswith(f"{root}/") or log_path.endswith("/"):
        raise InvalidArgumentError(FIELD, f"{log_path!r} must be a file's path inside the log directory {directory!r}")
    real = os.path.realpath(os.path.dirname(path))
    inside = os.path.realpath(root)
    if real != inside and not real.startswith(f"{inside}/"):
        raise InvalidArgumentError(FIELD, f"{log_path!r} leads out of the log directory to {real!r} by a symlink")
    return path


def ensure_directory(path: str) -> None:
    """Make the directory that the log file `path` lies in; nothing for "".

    Raises:
        KernelError: it cannot be made.
    """
    if not path:
        return
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
    except OSError as error:
        raise KernelError(f"make the log directory {directory}", error.errno or 0) from None
