"""The members of an archive on disk, while it is not known yet what they are.

An archive's list of contents may come last, so every regular file is kept under a number of ours in
`<content>/loads/<random>/`, with its size and digest, until the list is read. The names of the archive are keys of a
dictionary and never paths of the host; links lead from key to key. Invariants: memory does not grow with the
archive's size; a spool's directory goes with the spool, and what a killed daemon left of one goes at the next start.
Sources: docker's image spec v1.2 ("Combined Image JSON + Filesystem Changeset Format"), image-spec, image-layout.md.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from crishim.errors import DataLossError, ResourceExhaustedError
from crishim.images.archive.packing import Opened, Read
from crishim.images.content import Content, disk_error
from crishim.images.settings import ImageSettings
from crishim.images.threads import through
from crishim.linux.sync import start_writeback
from crishim.unpack import tarstream

_PIECE = 1 << 20
_WRITEBACK = 8 << 20  # a multiple of the piece; the fsync at the end then has little left to do
_MEMBERS = 20_000  # docker wrote four for a layer; an image has at most 1000 layers
_NAME = 1024
_LINKS = 40
_BLOB = re.compile(r"(?:^|/)blobs/(sha256|sha512)/([0-9a-f]+)$")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of the archive: where it is kept, its size in bytes, and its digest."""

    path: str
    size: int
    digest: str

    def read(self, limit: int, what: str) -> bytes:
        """Return a small file's bytes; DataLossError if there are more than `limit`."""
        if self.size > limit:
            raise DataLossError(f"{what}: {self.size} bytes are more than the limit of {limit}")
        with open(self.path, "rb") as file:
            return file.read()

    def head(self) -> bytes:
        """Return the first bytes, by which packed data are known."""
        with open(self.path, "rb") as file:
            return file.read(8)


class Spools:
    """Makes spools, and removes what was left of earlier ones.

    Args:
        root: the content directory; spools lie below it, so that a blob moves into its place by a rename.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.join(root, "loads")

    def open(self) -> int:
        """Make the directory, and remove what a killed daemon left in it; return how many spools that is."""
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        left = os.listdir(self._root)
        for name in left:
            shutil.rmtree(os.path.join(self._root, name))
        return len(left)

    @contextlib.asynccontextmanager
    async def new(self) -> AsyncIterator["Spool"]:
        """Give an empty spool for the block's time."""
        path = os.path.join(self._root, os.urandom(6).hex())
        try:
            os.makedirs(path, mode=0o700)
        except OSError as error:
            raise disk_error(error, f"mkdir {path}") from None
        try:
            yield Spool(path)
        finally:
            await through("remove", lambda: shutil.rmtree(path, ignore_errors=True))


class Spool:
    """The members of one archive."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._members: dict[str, Member] = {}
        self._links: dict[str, str] = {}
        self._count = 0
        self._files = 0

    def find(self, name: str) -> Member | None:
        """Return the member of this name, or the one that a link of this name leads to."""
        key = _normal(name)
        for _ in range(_LINKS):
            if key not in self._links:
                return self._members.get(key)
            key = self._links[key]
        return None

    def names(self) -> list[str]:
        """Return the names of the regular files."""
        return list(self._members)

    def receive(self, read: Read, settings: ImageSettings, what: str) -> None:
        """Take in an archive, packed or plain; blocks.

        Args:
            read: returns up to n bytes, `b""` at the end.
            settings: limits.
            what: names the archive in errors.

        Raises:
            DataLossError: no tar archive, corrupt, truncated, or a blob is not what its name says.
            ResourceExhaustedError: beyond a limit, or the disk is full.
            AbortedError: cancelled.
        """
        stream = tarstream.TarStream(Opened(read, settings, what).pieces())
        try:
            while (entry := stream.next()) is not None:
                self._take(entry, stream, settings, what)
            stream.drain()
        except tarstream.TarError as error:
            raise DataLossError(f"{what}: {error}") from None
        except OSError as error:
            raise disk_error(error, f"spooling {what}") from None

    def add(self, name: str, pieces: Iterator[bytes]) -> Member:
        """Keep the bytes of one file that comes as a stream; blocks."""
        path = self._path()
        digest = hashlib.sha256()
        size = 0
        try:
            with open(path, "xb", buffering=0) as file:
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    write_all(file.fileno(), piece)
        except OSError as error:
            raise disk_error(error, f"storing {name}") from None
        return self._keep(name, Member(path, size, f"sha256:{digest.hexdigest()}"))

    def publish(self, members: Sequence[Member], content: Content, published: list[Member]) -> None:
        """Make members blobs and list them in `published`, for `content.note`; blocks for the disk."""
        for member in members:
            if member.digest in content or not os.path.exists(member.path):
                continue  # stored already, or named twice
            try:
                fd = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    content.publish(fd, member.path, member.digest)
                finally:
                    os.close(fd)
            except OSError as error:
                raise disk_error(error, f"storing blob {member.digest}") from None
            published.append(member)

    # --- inside --------------------------------------------------------------------------------------------------

    def _take(self, entry: tarstream.Entry, stream: tarstream.TarStream, settings: ImageSettings, what: str) -> None:
        self._count += 1
        if self._count > _MEMBERS:
            raise ResourceExhaustedError(f"{what} has more than {_MEMBERS} members; image archives have a few")
        if max(len(entry.name), len(entry.link)) > _NAME:
            raise DataLossError(f"{what}: a member's name is longer than {_NAME} bytes")
        key = _normal(os.fsdecode(entry.name))
        target = os.fsdecode(entry.link)
        if entry.kind in tarstream.REGULAR:
            if entry.extents is not None:
                raise DataLossError(f"{what}: {key!r} is a sparse file; make the archive without tar's --sparse")
            self._keep(key, self._store(entry, stream, key, settings, what))
        elif entry.kind == tarstream.HARD_LINK:
            self._link(key, target)
        elif entry.kind == tarstream.SYMLINK:
            self._link(key, target if target.startswith("/") else f"{os.path.dirname(key)}/{target}")

    def _store(
        self, entry: tarstream.Entry, stream: tarstream.TarStream, key: str, settings: ImageSettings, what: str
    ) -> Member:
        if entry.size > settings.max_layer_bytes:
            raise ResourceExhaustedError(
                f"{what}: {key!r} has more than {settings.max_layer_bytes} bytes (images.max_layer_bytes)"
            )
        named = _BLOB.search(key)
        digest = hashlib.new(named[1] if named else "sha256")
        path = self._path()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            while done < entry.size:
                size = min(_PIECE, entry.size - done)
                stream.copy(fd, size)
                digest.update(os.pread(fd, size, done))
                done += size
                if done % _WRITEBACK == 0:
                    start_writeback(fd, 0, done)
        finally:
            os.close(fd)
        found = digest.hexdigest()
        if named and named[2] != found:
            raise DataLossError(f"{what}: {key!r}: its bytes have the digest {named[1]}:{found}")
        return Member(path, entry.size, f"{digest.name}:{found}")

    def _path(self) -> str:
        self._files += 1
        return os.path.join(self._directory, str(self._files))

    def _keep(self, key: str, member: Member) -> Member:
        """The last of several members with one name counts, as in any tar archive."""
        earlier = self._members.pop(key, None)
        if earlier is not None:
            os.unlink(earlier.path)
        self._links.pop(key, None)
        self._members[key] = member
        return member

    def _link(self, key: str, target: str) -> None:
        self._members.pop(key, None)
        self._links[key] = _normal(target)


def _normal(name: str) -> str:
    """Return a member's name without `.` and `..`, relative to the archive's root, beyond which nothing leads."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write all of the bytes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
