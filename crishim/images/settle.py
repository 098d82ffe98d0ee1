"""What the extracting child could not finish: marks, and the two traps of layers that need the layers below.

- Opaque directories get their xattr (the child lacks the capability for it).
- A directory that the layer implies but does not list gets owner, mode, times and xattrs of the layers below. If it
  is a link there, the layer's entries belong where the link leads: the caller extracts again with a rename.
- A hard link to a file of a layer below is given a copy of that file, as overlayfs would copy it up.

Every path comes from an image: it is resolved below the layer's own directory and without links. Runs in a thread.
Invariant: after `settle` returned no renames, the layer is right on top of exactly this stack.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crishim.errors import DataLossError
from crishim.images.copies import copy, copy_attributes, xattrs
from crishim.images.merged import OPAQUE, Found, MergedView
from crishim.linux import calls

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def stands_alone(report: Mapping[str, Any]) -> bool:
    """Tell whether a layer needs nothing of the layers below."""
    return not report["parents"] and not report["links"]


def mark_opaque(directory: str, report: Mapping[str, Any]) -> None:
    """Mark the directories that hide those below them. The root hides by being the lowest layer that is mounted."""
    root = os.open(directory, _OPEN)
    try:
        for path in report["opaque"]:
            if path:
                with _directory(root, path) as fd:
                    os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(root)


def root_differs(lower: str) -> bool:
    """Tell whether a layer's root is other than root:root 0755 without xattrs, what an unlisted root gets."""
    info = os.stat(lower)
    return (info.st_mode & 0o7777, info.st_uid, info.st_gid) != (0o755, 0, 0) or bool(xattrs(lower))


def settle(directory: str, report: Mapping[str, Any], layers: Sequence[str]) -> tuple[dict[str, str], int, int]:
    """Finish a layer on top of `layers` (directories, bottom first).

    Returns:
        (renames, bytes, inodes): with renames the layer must be extracted again, and nothing else was done; else
        what the copies of linked files added.
    """
    root = os.open(directory, _OPEN)
    try:
        with MergedView(layers) as view:
            parents = [path for path in report["parents"] if not _hidden(path, report["opaque"])]
            renames = _renames(parents, view)
            if renames:
                return renames, 0, 0
            if not report["lists_root"] and layers:
                copy_attributes(layers[-1], root)
            for path in parents:
                found = view.look(path, follow=False)
                if found is not None and stat.S_ISDIR(found.info.st_mode):
                    _adopt(root, path, found)
            sizes = _copy_files(root, report["links"], view)
            for path in sorted(report["parents"], reverse=True):
                if path not in report["opaque"] and view.look(path, follow=False) is None:
                    _drop_if_only_whiteouts(root, path)
    finally:
        os.close(root)
    return {}, sum(sizes), len(sizes)


def _hidden(path: str, opaque: Sequence[str]) -> bool:
    """Tell whether a directory above `path` hides the layers below."""
    return any(path.startswith(f"{top}/") or not top for top in opaque)


def _renames(parents: Sequence[str], view: MergedView) -> dict[str, str]:
    renames = {}
    for path in parents:
        found = view.look(path, follow=False)
        if found is None or not stat.S_ISLNK(found.info.st_mode):
            continue
        real, name = view.real(path)
        if real is None or stat.S_ISDIR(real.info.st_mode):
            renames[path] = name
    return renames


def _adopt(root: int, path: str, found: Found) -> None:
    source = os.open(found.name, _OPEN, dir_fd=found.parent_fd)
    try:
        with _directory(root, path) as fd:
            copy_attributes(source, fd)
    finally:
        os.close(source)


def _copy_files(root: int, links: Sequence[Sequence[str]], view: MergedView) -> list[int]:
    """Put copies of lower layers' files where the layer has hard links to them; return their sizes on disk.

    Links to one file, or to a link before them, become links to one copy.
    """
    sizes = []
    copies: dict[str, str] = {}
    for path, target in links:
        parent, _, name = path.rpartition("/")
        with _directory(root, parent) as holder:
            if _there(holder, name):
                continue  # a later entry of the layer has this name
            if target in copies:
                above, _, base = copies[target].rpartition("/")
                with _directory(root, above) as source:
                    os.link(base, name, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)
            else:
                found = view.look(target, follow=False)
                if found is None or stat.S_ISDIR(found.info.st_mode):
                    raise DataLossError(
                        f"hard link {path[:200]!r} names {target[:200]!r}, which no layer has as a file"
                    )
                sizes.append(copy(found, holder, name))
                copies[target] = path
            copies[path] = copies[target]
    return sizes


def _there(holder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=holder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _drop_if_only_whiteouts(root: int, path: str) -> None:
    """Remove a directory that exists only to remove what is not there (a whiteout of nothing is nothing)."""
    with _directory(root, path) as fd, os.scandir(fd) as entries:
        names = [entry.name for entry in entries]
        for name in names:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISCHR(info.st_mode) or info.st_rdev != 0:
                return
        for name in names:
            os.unlink(name, dir_fd=fd)
    parent, _, base = path.rpartition("/")
    with _directory(root, parent) as holder:
        os.rmdir(base, dir_fd=holder)


@contextlib.contextmanager
def _directory(root: int, path: str) -> Iterator[int]:
    """Open a directory of the layer, following nothing (openat2(2))."""
    beneath = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
    fd = calls.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, 0, beneath)
    try:
        yield fd
    finally:
        os.close(fd)
