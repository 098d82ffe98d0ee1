"""Entries of a layer's tar archive become files in overlayfs's form, below the root of a process that has only that.

- Whiteouts `.wh.x` become character devices 0:0. They apply to the layers below only, whatever their place in the
  archive: what the layer itself brings under that name stays, and a directory then hides what is below it. Setting
  `trusted.overlay.opaque` takes CAP_SYS_ADMIN, so opaque directories are reported and the daemon marks them.
- Directories that the layer does not list are made (0755 root) and reported: the daemon gives them what they have in
  the layers below. So are hard links to files that this layer does not have.
- The last entry of a name counts, types included; a directory entry over a directory only changes its attributes.

Out of scope: keeping the process inside of the layer (`extract`). Invariant: nothing is imported, as the root is the
layer's already.
"""

import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from crishim.unpack import tarstream
from crishim.unpack.tarstream import Entry, TarError, TarStream

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_DOTS = (b".", b"..")
_PAGE = 4096
_LINKS = 40  # like the kernel's MAXSYMLINKS
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = (FileNotFoundError, NotADirectoryError)

# os.path.realpath and friends are called later: their module is loaded now, with all others.
_realpath = os.path.realpath


def clean(name: bytes) -> bytes:
    """Return a name relative to the layer's root: no leading or trailing slash, no `.`; `..` ends at the root."""
    name = name.removeprefix(b"./").strip(b"/")
    if b"/." in name or b"//" in name or name.startswith(b"."):
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in {b"", b"."}:
                parts.append(part)
        return b"/".join(parts)
    return name


def _renamed(name: bytes, renames: Mapping[bytes, bytes]) -> bytes:
    """Return a name with its longest renamed parent replaced (see `LayerWriter`)."""
    head = name
    while head := head.rpartition(b"/")[0]:
        if head in renames:
            return (renames[head] + name[len(head) :]).strip(b"/")
    return name


class LayerWriter:
    """Applies entries to the directory that is this process's root and working directory.

    Args:
        stream: where file contents come from.
        renames: parents that are symbolic links in the layers below → where they lead; entries below them go there.
    """

    def __init__(self, stream: TarStream, renames: Mapping[bytes, bytes]) -> None:
        self._stream = stream
        self._renames = renames
        self._directories: dict[bytes, tuple[int, Mapping[bytes, bytes]]] = {}  # times and xattrs, set at the end
        self._implied: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._links: dict[bytes, bytes] = {}
        self._bytes = 0
        self._inodes = 1
        self._skipped_xattrs = 0
        self._parent, self._prefix = b"", b""  # of the last entry, as the archive has it and where it goes
        # While all directories are group 0's, a new file is root:root whatever their modes and the mount's options.
        self._chown_all = bool(os.geteuid() or os.getegid() or os.stat(".").st_gid)
        self._makers: dict[bytes, Callable[[bytes, Entry], None]] = {
            tarstream.HARD_LINK: self._hard_link,
            tarstream.SYMLINK: self._symlink,
            tarstream.CHARACTER: self._node,
            tarstream.BLOCK_DEVICE: self._node,
            tarstream.FIFO: self._node,
            tarstream.DIRECTORY: self._directory,
            **dict.fromkeys(tarstream.REGULAR, self._file),
        }

    def run(self, max_entries: int) -> dict[str, Any]:
        """Apply the whole stream; return the report."""
        count = 0
        while (entry := self._stream.next()) is not None:
            count += 1
            if max_entries and count > max_entries:
                raise TarError(f"the layer has more than {max_entries} entries")
            self.apply(entry)
        self._finish_directories()
        self._stream.drain()
        return self._report()

    def apply(self, entry: Entry) -> None:
        """Apply one entry; raises TarError or OSError with the entry's name."""
        parent, _, base = entry.name.rpartition(b"/")
        if base and base not in _DOTS:
            if parent != self._parent:  # neighbours mostly have the same
                self._parent, self._prefix = parent, self._path(parent + b"/x")[:-1]
            path = self._prefix + base
        else:
            path = self._path(entry.name)
            base = path.rpartition(b"/")[2]
        try:
            if base[:4] == WHITEOUT:
                self._whiteout(path[: -len(base)].rstrip(b"/"), base)
                return
            maker = self._makers.get(entry.kind)
            if maker is None:
                raise TarError(f"tar entry {_text(path)} has the unknown type {entry.kind!r}")
            if not path and entry.kind != tarstream.DIRECTORY:
                raise TarError(f"tar entry {_text(entry.name)} would replace the root")
            if self._links:
                self._links.pop(self._place(path), None)
            maker(path, entry)
        except OSError as error:
            error.filename = _text(path)
            raise

    def _path(self, name: bytes) -> bytes:
        """Return where an entry of this name goes."""
        path = clean(name)
        return _renamed(path, self._renames) if self._renames else path

    # --- one method per kind of entry ----------------------------------------------------------------------------

    def _file(self, path: bytes, entry: Entry) -> None:
        try:
            fd = os.open(path, _CREATE, entry.mode)
        except OSError:
            self._make_way(path)
            fd = os.open(path, _CREATE, entry.mode)
        try:
            if entry.extents is not None:
                for offset, size in entry.extents:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._stream.copy(fd, size)
                os.ftruncate(fd, entry.real_size)
            elif entry.size:
                self._stream.copy(fd, entry.size)
            if self._chown_all or entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o6000:
                os.fchmod(fd, entry.mode)  # chown, or the first write, took the set-ID bits away
            if entry.xattrs:
                self._set_xattrs(fd, path, entry.xattrs)
            mtime = entry.mtime
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)
        self._count(entry.size)

    def _directory(self, path: bytes, entry: Entry) -> None:
        if path:
            self._make_directory(path, entry.mode)
        self._implied.discard(path)
        self._directories[path] = entry.mtime, entry.xattrs
        self._chown_all = self._chown_all or entry.gid != 0
        name = path or b"."
        os.chown(name, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(name, entry.mode)

    def _make_directory(self, path: bytes, mode: int) -> None:
        try:
            os.mkdir(path, mode)
        except OSError:
            kept = self._make_way(path, keep_directory=True)
            if kept == "directory":
                return
            os.mkdir(path, mode)
            if kept == "whiteout":
                self._opaque.add(_real(path))
        self._count(_PAGE)

    def _symlink(self, path: bytes, entry: Entry) -> None:
        try:
            os.symlink(entry.link, path)
        except OSError:
            self._make_way(path)
            os.symlink(entry.link, path)
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if entry.xattrs:
            self._set_xattrs(None, path, entry.xattrs)
        os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)
        self._count(0)

    def _node(self, path: bytes, entry: Entry) -> None:
        kind = {tarstream.CHARACTER: stat.S_IFCHR, tarstream.BLOCK_DEVICE: stat.S_IFBLK}.get(entry.kind, stat.S_IFIFO)
        device = os.makedev(entry.major, entry.minor)
        try:
            os.mknod(path, kind | entry.mode, device)
        except OSError:
            self._make_way(path)
            os.mknod(path, kind | entry.mode, device)
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(path, entry.mode)
        if entry.xattrs:
            self._set_xattrs(None, path, entry.xattrs)
        os.utime(path, ns=(entry.mtime, entry.mtime))
        self._count(0)

    def _hard_link(self, path: bytes, entry: Entry) -> None:
        target = self._path(entry.link)
        if target in {path, b""}:
            raise TarError(f"hard link {_text(path)} names {_text(entry.link)}, which cannot be linked")
        found = _lstat(target)
        if found is None or _is_whiteout(found):
            self._make_way(path)
            self._links[self._place(path)] = self._place(target)
            return
        if stat.S_ISDIR(found.st_mode):
            raise TarError(f"hard link {_text(path)} names the directory {_text(entry.link)}")
        present = _lstat(path)
        if present is not None and present.st_ino == found.st_ino:
            return
        try:
            os.link(target, path, follow_symlinks=False)
        except OSError:
            self._make_way(path)
            os.link(target, path, follow_symlinks=False)

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == OPAQUE:
            if parent:
                self._ensure(parent)
            self._opaque.add(_real(parent))
            return
        if base.startswith(_AUFS):
            return  # aufs's own bookkeeping, of no meaning in a layer
        name = base[len(WHITEOUT) :]
        if name in {b"", b".", b".."}:
            raise TarError(f"whiteout {_text(base)} names nothing that could be removed")
        path = parent + b"/" + name if parent else name
        found = _lstat(path)
        if found is None:
            if parent:
                self._ensure(parent)
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))  # needs no capability for 0:0 (Linux 5.8)
            self._count(0)
        elif stat.S_ISDIR(found.st_mode):
            real = _real(path)
            self._opaque.add(real)
            self._implied.discard(real)

    # --- what stands in the way ----------------------------------------------------------------------------------

    def _make_way(self, path: bytes, *, keep_directory: bool = False) -> str:
        """Make the parents of `path` and remove what has its name; say what was there."""
        parent = path.rpartition(b"/")[0]
        if parent:
            self._ensure(parent)
        found = _lstat(path)
        if found is None:
            return ""
        if stat.S_ISDIR(found.st_mode):
            if not keep_directory:
                self._remove_tree(path)
            return "directory"
        os.unlink(path)
        return "whiteout" if _is_whiteout(found) else "file"

    def _ensure(self, path: bytes, depth: int = 0) -> None:
        """Make `path` a directory with all its parents, following links inside the layer."""
        if depth > _LINKS:
            raise TarError(f"too many links on the way to {_text(path)}")
        missing = []
        while path and not _is_directory(path):
            missing.append(path)
            path = path.rpartition(b"/")[0]
        place = _real(path)
        for name in reversed(missing):
            place = self._ensure_one(name, place, depth)

    def _ensure_one(self, path: bytes, parent: bytes, depth: int) -> bytes:
        """Make `path` a directory whose parent is one, and really lies at `parent`; return where it lies."""
        if _is_directory(path):
            return _real(path)  # by way of a link that is made good now
        found = _lstat(path)
        if found is not None and stat.S_ISLNK(found.st_mode):
            target = _realpath(path).strip(b"/")
            if target == path or _lstat(target) is not None:
                raise TarError(f"{_text(path)} is a link that leads to no directory, yet has entries below it")
            self._ensure(target, depth + 1)
            return _real(path)
        if found is not None:
            os.unlink(path)
        os.mkdir(path, 0o755)
        os.chown(path, 0, 0, follow_symlinks=False)
        os.chmod(path, 0o755)  # noqa: S103  users of the container pass
        place = _below(parent, path.rpartition(b"/")[2])
        if found is not None and _is_whiteout(found):
            self._opaque.add(place)
        elif found is None:
            self._implied.add(place)
        self._count(_PAGE)
        return place

    def _place(self, path: bytes) -> bytes:
        """Return where a name really lies: its parent without this layer's links, which settling does not follow."""
        parent, _, base = path.rpartition(b"/")
        return _below(_real(parent), base) if parent else path

    def _remove_tree(self, path: bytes) -> None:
        """Remove a directory that a later entry of the same archive replaces, and all that is remembered of it."""
        below = _real(path) + b"/"
        pending = [path]
        seen = []
        while pending:
            directory = pending.pop()
            seen.append(directory)
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        os.unlink(entry.path)
        for directory in reversed(seen):
            os.rmdir(directory)
            self._directories.pop(directory, None)
        gone = {_real(directory) for directory in seen}
        self._implied -= gone
        self._opaque -= gone
        self._links = {name: target for name, target in self._links.items() if not name.startswith(below)}

    # --- attributes ----------------------------------------------------------------------------------------------

    def _set_xattrs(self, fd: int | None, path: bytes, xattrs: Mapping[bytes, bytes]) -> None:
        for name, value in xattrs.items():
            if not _may_set(name):
                self._skipped_xattrs += 1
                continue
            try:
                if fd is None:
                    os.setxattr(path or b".", name, value, follow_symlinks=False)
                else:
                    os.setxattr(fd, name, value)
            except OSError as error:
                # Like others: what the file system cannot keep is left out, but not a program's capabilities.
                if name == b"security.capability" or error.errno in (28, 122, 5):
                    raise
                self._skipped_xattrs += 1

    def _finish_directories(self) -> None:
        """Set directories' xattrs and times at last: a default ACL changes, and each new child touches, its parent."""
        for path, (mtime, xattrs) in self._directories.items():
            if not _is_directory(path):
                continue
            if xattrs:
                self._set_xattrs(None, path, xattrs)
            os.utime(path or b".", ns=(mtime, mtime), follow_symlinks=False)

    def _count(self, size: int) -> None:
        self._bytes += size + -size % _PAGE
        self._inodes += 1

    def _report(self) -> dict[str, Any]:
        return {
            "ok": True,
            "bytes": self._bytes,
            "inodes": self._inodes,
            "lists_root": b"" in self._directories,
            "parents": sorted(_text(p) for p in self._implied),
            "opaque": sorted(_text(p) for p in self._opaque),
            "links": [[_text(path), _text(target)] for path, target in self._links.items()],
            "skipped_xattrs": self._skipped_xattrs,
        }


def _may_set(name: bytes) -> bool:
    """Tell whether an image may bring this xattr: never overlayfs's own, nor what names the host's policy."""
    if name.startswith((b"user.overlay.", b"trusted.")):
        return False
    return name.startswith((b"user.", b"system.posix_acl_")) or name == b"security.capability"


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except _NOT_THERE:
        return None


def _real(path: bytes) -> bytes:
    """Return where a directory really lies, or would lie: its path without links."""
    try:
        os.chdir(path or b"/")
    except OSError:
        return _realpath(path).strip(b"/")
    # The kernel knows it; realpath looks at each part of the way from its beginning, which hostile trees make long.
    try:
        return os.getcwdb().strip(b"/")
    finally:
        os.chdir("/")


def _below(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path or b".").st_mode)
    except _NOT_THERE:
        return False


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
