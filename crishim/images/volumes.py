"""Directories for an image's volumes (image-spec, config.md, `Volumes`), filled with what the image has there.

Pure file work on layers that nobody changes: nothing is mounted, and paths of the image are followed inside it only.
Blocking; meant for a thread. Out of scope: which volumes a container gets, and how they are mounted.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from crishim.errors import FailedPreconditionError
from crishim.images.content import disk_error
from crishim.images.copies import copy, copy_attributes
from crishim.images.merged import MergedView
from crishim.linux import calls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS


def make(
    layers: Sequence[str], wanted: Iterable[str], home: str, allowed: Callable[[str], bool]
) -> list[tuple[str, str]]:
    """Make a directory below `home` for each volume; return (directory, path in the container), parents first.

    A path that is missing in the image gets an empty directory; what is no directory there is no volume.

    Args:
        layers: the image's, bottom first.
        wanted: absolute paths.
        home: a directory; it is made if there is a volume.
        allowed: tells of a path, as its links lead, whether a volume may be there.

    Raises:
        ResourceExhaustedError: the disk is full.
        FailedPreconditionError: the image's content cannot be copied.
    """
    found: dict[str, str] = {}
    with MergedView(layers) as view:
        for path in wanted:
            directory = os.path.join(home, str(len(found)))
            try:
                there, real = view.real(path)
                place = f"/{real}"
                if not allowed(place) or place in found or (there is not None and not stat.S_ISDIR(there.info.st_mode)):
                    continue
                os.makedirs(home, mode=0o700, exist_ok=True)
                os.mkdir(directory, 0o755)
                os.chmod(directory, 0o755)  # noqa: S103  as in any image; what is above it is root's alone
                if there is not None:
                    _fill(view, real, directory)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise FailedPreconditionError(
                        f"volume {path[:200]}: the image's names are too long, or nested too deeply"
                    ) from None
                raise disk_error(error, f"volume {path}") from None
            found[place] = directory
    return [(found[place], place) for place in sorted(found)]


def _fill(view: MergedView, top: str, directory: str) -> None:
    """Copy the tree at `top` of the image into an empty directory."""
    root = os.open(directory, _DIRECTORY)
    linked: dict[tuple[int, int], str] = {}
    made = [""]
    waiting = deque(made)
    try:
        while waiting:
            path = waiting.popleft()
            holder = _open(root, path)
            try:
                with view.entries(f"{top}/{path}") as entries:
                    for found in entries:
                        inside = f"{path}/{found.name}" if path else found.name
                        key = (found.info.st_dev, found.info.st_ino)
                        if stat.S_ISDIR(found.info.st_mode):
                            os.mkdir(found.name, 0o700, dir_fd=holder)
                            made.append(inside)
                            waiting.append(inside)
                        elif key in linked:
                            os.link(linked[key], found.name, src_dir_fd=root, dst_dir_fd=holder, follow_symlinks=False)
                        else:
                            copy(found, holder, found.name)
                            if found.info.st_nlink > 1:
                                linked[key] = inside
            finally:
                os.close(holder)
        for path in reversed(made):  # children first, since they change their directory's time
            _like(view, f"{top}/{path}".rstrip("/"), root, path)
    finally:
        os.close(root)


def _like(view: MergedView, source: str, root: int, path: str) -> None:
    """Give a directory the attributes that it has in the image."""
    found = view.look(source, follow=False)
    assert found is not None
    theirs, ours = os.open(found.name, _DIRECTORY, dir_fd=found.parent_fd), _open(root, path)
    try:
        copy_attributes(theirs, ours)
    finally:
        os.close(theirs)
        os.close(ours)


def _open(root: int, path: str) -> int:
    return calls.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, 0, _BENEATH)
