"""What a path is in a stack of layers, as overlayfs would show it, without mounting anything.

Used to settle layers that do not stand on their own, and to fill volumes. Links are followed inside the stack only,
each step by fd and O_NOFOLLOW, so images cannot lead it elsewhere. Sources: overlayfs.rst ("whiteouts and opaque
directories"); path_resolution(7). Out of scope: changing anything.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from crishim.errors import DataLossError

OPAQUE = "trusted.overlay.opaque"
_LINKS = 40
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at a path: its real path, its attributes, and an fd of the directory that holds its name."""

    path: str
    info: os.stat_result
    parent_fd: int
    name: str


class MergedView:
    """Looks paths up in layers; the Found of `real` is for its attributes only, its fds may be closed.

    Args:
        layers: directories, bottom first.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._fds: list[int] = []
        self._roots = [self._keep(os.open(path, _OPEN)) for path in reversed(layers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def look(self, path: str, *, follow: bool) -> Found | None:
        """Return what `path` is, or None; links on the way are followed, the last component only if `follow`.

        The fds of the result are good until the view is closed. `path` is relative to the root.
        """
        mark = len(self._fds)
        found, _ = self._walk(path, follow=follow)
        # Long lists of paths must not pile up fds: all but the one handed out are closed.
        spare = [fd for fd in self._fds[mark:] if found is None or fd != found.parent_fd]
        self._fds[mark:] = [found.parent_fd] if found is not None and found.parent_fd in self._fds[mark:] else []
        for fd in spare:
            os.close(fd)
        return found

    def real(self, path: str) -> tuple[Found | None, str]:
        """Return what `path` leads to, if that exists, and its path without links; missing components stay as named."""
        mark = len(self._fds)
        found, name = self._walk(path, follow=True)
        for fd in self._fds[mark:]:
            os.close(fd)
        del self._fds[mark:]
        return found, name

    @contextlib.contextmanager
    def entries(self, path: str) -> Iterator[Iterator[Found]]:
        """Give what a directory holds, each name once; `path` has no links in it.

        The fds of the results are good inside the context only; a result's path is its name.
        """
        mark = len(self._fds)
        stack: Sequence[int] = self._roots
        try:
            for part in filter(None, path.split("/")):
                _, _, stack = self._step(stack, part)
            yield _merged(stack)
        finally:
            for fd in self._fds[mark:]:
                os.close(fd)
            del self._fds[mark:]

    def _walk(self, path: str, *, follow: bool) -> tuple[Found | None, str]:
        pending = [part for part in path.split("/") if part]
        done: list[str] = []
        stack = self._roots
        links = 0
        while pending:
            part = pending.pop(0)
            if part == ".":
                continue
            if part == "..":
                # Rare: begin again from the root, one level up.
                pending, done, stack = [*done[:-1], *pending], [], self._roots
                continue
            parent, info, below = self._step(stack, part)
            if info is None:
                return None, _lexical([*done, part, *pending])
            if stat.S_ISLNK(info.st_mode) and (pending or follow):
                links += 1
                if links > _LINKS:
                    raise DataLossError(f"{path[:200]!r}: too many links in the layers below")
                target = os.readlink(part, dir_fd=parent)
                pending = [*(p for p in target.split("/") if p), *pending]
                if target.startswith("/"):
                    done, stack = [], self._roots
                continue
            done.append(part)
            if not pending:
                return Found("/".join(done), info, parent, part), "/".join(done)
            if not below:
                return None, _lexical([*done, *pending])
            stack = below
        # What is left is a directory that was walked already: the root, or where a path ended in `..`.
        if done:
            return self._walk("/".join(done), follow=False)
        return (Found("", os.fstat(self._roots[0]), self._roots[0], ".") if self._roots else None), ""

    def _step(self, stack: Sequence[int], name: str) -> tuple[int, os.stat_result | None, list[int]]:
        """Look one name up in the merged directory `stack`; return its holder, its attributes and its own stack."""
        holder, found = -1, None
        below: list[int] = []
        for fd in stack:
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                break
            if not stat.S_ISDIR(info.st_mode):
                if found is None:
                    holder, found = fd, info
                break
            if found is None:
                holder, found = fd, info
            child = self._keep(os.open(name, _OPEN, dir_fd=fd))
            below.append(child)
            if is_opaque(child):
                break
        return holder, found, below

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


def _merged(stack: Sequence[int]) -> Iterator[Found]:
    """Yield the entries of a merged directory, whose own directories are open, the topmost first."""
    seen: set[str] = set()
    for fd in stack:
        for name in os.listdir(fd):
            if name in seen:
                continue
            seen.add(name)
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not (stat.S_ISCHR(info.st_mode) and info.st_rdev == 0):
                yield Found(name, info, fd, name)


def _lexical(parts: Sequence[str]) -> str:
    found: list[str] = []
    for part in parts:
        if part == "..":
            del found[-1:]
        elif part != ".":
            found.append(part)
    return "/".join(found)


def is_opaque(fd: int) -> bool:
    """Tell whether a directory hides what the layers below have under its name."""
    with contextlib.suppress(OSError):
        return os.getxattr(fd, OPAQUE) == b"y"
    return False
