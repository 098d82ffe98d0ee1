"""Removing trees that came out of images: any depth, any names, no link followed.

`shutil.rmtree` recurses and holds an fd for each level; a layer may be thousands of directories deep. Here a
directory deeper than a few levels is first moved up to the top. Invariant: nothing outside the tree is touched,
because every step is relative to an fd of a directory of the tree and O_NOFOLLOW.
"""

import contextlib
import os
from itertools import count

_DEPTH = 32
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Remove a directory and all below it, or a file; absent is fine.

    Raises:
        OSError: something cannot be removed (read-only file system, immutable file).
    """
    try:
        top = os.open(path, _OPEN)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(path)
        return
    try:
        _empty(top, top, 0, count())
        # What lay too deep was moved here; each round brings the rest of it up by some levels.
        while names := os.listdir(top):
            for name in names:
                _remove(top, name, top, 0, count())
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(fd: int, top: int, depth: int, numbers: "count[int]") -> None:
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if is_directory:
            _remove(fd, name, top, depth, numbers)
        else:
            os.unlink(name, dir_fd=fd)


def _remove(parent: int, name: str, top: int, depth: int, numbers: "count[int]") -> None:
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    try:
        if depth >= _DEPTH:
            _lift(parent, name, top, numbers)
            return
        _empty(fd, top, depth + 1, numbers)
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _lift(parent: int, name: str, top: int, numbers: "count[int]") -> None:
    """Move a directory to the top under a name that is free there."""
    for number in numbers:
        target = f".deep-{number}"
        try:
            os.stat(target, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, target, src_dir_fd=parent, dst_dir_fd=top)
            return
