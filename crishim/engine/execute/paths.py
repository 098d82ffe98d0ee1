"""Paths inside a container's root, which the image's author chose and which may hold any link.

Every path is resolved by the kernel inside the root (openat2(2), RESOLVE_IN_ROOT): an absolute or climbing link
lands inside, never on the host. The result is an O_PATH fd, and all further work goes by that fd, so what was
checked is what is used. A missing target is made, following even a dangling link to the place it names (the
image's /etc/localtime → a file that is not there).
"""

import errno
import os
import stat

from crishim.engine.execute.report import StepError
from crishim.linux import calls

_PLAIN = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
_MAX_LINKS = 40


def open_path(root: int, path: str, *, links: bool = True) -> int:
    """Return an O_PATH fd of `path` below the directory `root`; the caller closes it.

    Args:
        root: fd of the root directory.
        path: path as seen from inside.
        links: whether symbolic links may be followed (ELOOP otherwise).
    """
    resolve = _PLAIN if links else _PLAIN | calls.RESOLVE_NO_SYMLINKS
    return calls.openat2(root, path, os.O_PATH, 0, resolve)


def ensure(root: int, path: str, *, directory: bool, links: int = _MAX_LINKS) -> int:
    """Return an O_PATH fd of `path`, made (with its parents, 0755) if it is missing.

    Raises:
        OSError: resolution or creation failed.
        StepError: too many links, or a file where a directory must be (or the reverse).
    """
    try:
        fd = open_path(root, path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    else:
        _check_kind(fd, path, directory=directory)
        return fd
    parent, _, name = path.rstrip("/").rpartition("/")
    if not name or name == "..":
        raise StepError(f"{path}: no such directory", errno.ENOENT, path)
    parent_fd = ensure(root, parent or "/", directory=True, links=links)
    try:
        try:
            _make(parent_fd, name, directory=directory)
        except FileExistsError:
            # not there when resolved, yet there by name: a dangling link
            if links == 0:
                raise StepError(f"{path}: too many symbolic links", errno.ELOOP, path) from None
            target = os.readlink(name, dir_fd=parent_fd)
            joined = target if target.startswith("/") else f"{parent}/{target}"
            return ensure(root, joined, directory=directory, links=links - 1)
        return calls.openat2(parent_fd, name, os.O_PATH, 0, calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS)
    finally:
        os.close(parent_fd)


def _make(parent: int, name: str, *, directory: bool) -> None:
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=parent))


def _check_kind(fd: int, path: str, *, directory: bool) -> None:
    is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if is_directory == directory:
        return
    os.close(fd)
    if directory:
        raise StepError(f"{path}: is a file in the image, a directory must be mounted there", errno.ENOTDIR, path)
    raise StepError(f"{path}: is a directory in the image, a file must be mounted there", errno.EISDIR, path)
