"""Blobs as they came from registries: `<root>/content/<algorithm>/<hex>`, verified and durable.

Invariant: a file with a final name holds exactly the bytes of its digest and has been synced before it got the name.
What is being received lies in `content/parts/<algorithm>-<hex>` and may be resumed. Sizes are kept in memory, so
that nothing is walked. Out of scope: who needs which blob.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable

from crishim.errors import CrishimError, DataLossError, InternalError, ResourceExhaustedError
from crishim.linux.sync import sync_directory

ALGORITHMS = ("sha256", "sha512")
_FULL = frozenset({28, 122, 27})  # ENOSPC, EDQUOT, EFBIG


def disk_error(error: OSError, what: str) -> CrishimError:
    """Return what a failed write means to the caller; the path that failed is named where the system call had one."""
    if error.errno in _FULL:
        return ResourceExhaustedError(f"{what}: {error.strerror}: free space on the image file system")
    where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
    return InternalError(f"{what}: {error.strerror}{where}")


class Content:
    """The blobs of one instance.

    Args:
        root: the content directory; made by `open`.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}
        self.total = 0

    def open(self, part_seconds: float) -> None:
        """Make the directories, learn what is there, and drop parts that are too old to be resumed."""
        for name in (*ALGORITHMS, "parts"):
            os.makedirs(os.path.join(self._root, name), mode=0o700, exist_ok=True)
        for algorithm in ALGORITHMS:
            with os.scandir(os.path.join(self._root, algorithm)) as entries:
                for entry in entries:
                    self._note(f"{algorithm}:{entry.name}", entry.stat(follow_symlinks=False).st_size)
        self.sweep_parts(part_seconds)

    def sweep_parts(self, part_seconds: float, keep: Iterable[str] = ()) -> int:
        """Remove parts that nothing was added to for so long; return how many."""
        kept = {os.path.basename(self.part(digest)) for digest in keep}
        limit = time.time() - part_seconds
        removed = 0
        with os.scandir(os.path.join(self._root, "parts")) as entries:
            for entry in entries:
                if entry.name not in kept and entry.stat(follow_symlinks=False).st_mtime <= limit:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    def digests(self) -> list[str]:
        """Return the digests of all blobs."""
        return list(self._sizes)

    def count(self) -> int:
        """Return how many blobs there are."""
        return len(self._sizes)

    def size(self, digest: str) -> int:
        """Return a blob's size in bytes, 0 if it is not there."""
        return self._sizes.get(digest, 0)

    def path(self, digest: str) -> str:
        """Return where a blob lies, or would lie."""
        algorithm, _, name = digest.partition(":")
        return os.path.join(self._root, algorithm, name)

    def part(self, digest: str) -> str:
        """Return where a blob is received."""
        return os.path.join(self._root, "parts", digest.replace(":", "-"))

    def read(self, digest: str) -> bytes:
        """Return a small blob; DataLossError if it is damaged or gone."""
        try:
            with open(self.path(digest), "rb") as file:
                data = file.read()
        except OSError as error:
            raise DataLossError(f"blob {digest}: {error.strerror}; pull the image again") from None
        if not matches(data, digest):
            raise DataLossError(f"blob {digest} is damaged on disk; remove the image and pull it again")
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Store a small blob whose bytes the caller has checked; blocks for two fsyncs. `note` makes it known."""
        if digest in self._sizes:
            return
        temporary = f"{self.part(digest)}.{os.urandom(4).hex()}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                self.publish(fd, temporary, digest)
            finally:
                os.close(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise disk_error(error, f"storing blob {digest}") from None

    def publish(self, fd: int, temporary: str, digest: str) -> None:
        """Sync a verified file and give it its final name; raises OSError. `note` makes it known afterwards."""
        os.fsync(fd)
        os.rename(temporary, self.path(digest))
        sync_directory(os.path.dirname(self.path(digest)))

    def note(self, digest: str, size: int) -> None:
        """Remember a published blob."""
        if digest not in self._sizes:
            self._note(digest, size)

    def remove(self, digest: str) -> None:
        """Forget and delete a blob; absent is fine."""
        self.total -= self._sizes.pop(digest, 0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(digest))

    def drop_part(self, digest: str) -> None:
        """Delete what was received of a blob."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.part(digest))

    def _note(self, digest: str, size: int) -> None:
        self._sizes[digest] = size
        self.total += size


def matches(data: bytes, digest: str) -> bool:
    """Tell whether bytes have the digest."""
    algorithm, _, name = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == name
