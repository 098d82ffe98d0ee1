"""One blob on its way from a registry to the disk, readable while it comes.

The thread that receives writes to the part file and hashes; who unpacks follows the file. So a broken connection is
resumed by range without the unpacking noticing, memory is bounded by the page cache, and a slow disk or a slow
unpacking never holds up the network. Invariant: a reader waits for the end until the digest of the whole blob was
right; before, it waits or fails.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from crishim.errors import AbortedError, CrishimError, DataLossError, RegistryUnavailableError, UnavailableError
from crishim.images.content import Content, disk_error
from crishim.images.manifest import Descriptor
from crishim.images.registry.transport import BrokenError, Cancel, Response
from crishim.images.settings import ImageSettings
from crishim.linux.sync import start_writeback
from crishim.words import number

_CHUNK = 256 << 10
_WRITEBACK = 8 << 20


class Source(Protocol):
    """A blob's file and how much of it is there; `size` is what it will have."""

    size: int

    def fileno(self) -> int:
        """Return the file, open for reading only."""

    def wait(self, position: int) -> int:
        """Return how many bytes there are, once there are more than `position` or the blob is whole and verified.

        Raises:
            AbortedError: cancelled, or the download failed.
        """

    def close(self) -> None:
        """Let go of the file."""


class Origin(Protocol):
    """Where blobs come from: a repository of a registry, or an archive. `name` names it in errors."""

    name: str

    def blob(self, digest: str, offset: int, urls: Sequence[str], cancel: Cancel) -> tuple[Response, int]:
        """Return an answer that gives the blob from `offset` or from an earlier byte on, and which one that is."""

    def doubtful(self, digest: str) -> bool:
        """Tell whether the blob could be had elsewhere if what comes now is wrong."""

    def other(self, digest: str, problem: CrishimError) -> bool:
        """Take the blob from elsewhere from now on, after `problem`; False if there is nowhere else."""


class StalePartError(DataLossError):
    """The digest is wrong, and bytes came from an earlier attempt or a mirror: fetching all of it anew may help."""


class Fetch:
    """Receives one blob; `run` belongs into a thread, readers into others.

    Args:
        content: where the blob goes.
        blob: its descriptor.
        repository: where it is to be had.
        settings: attempts and pauses.
        received: told the number of bytes that came over the wire, piece by piece.
    """

    def __init__(
        self,
        content: Content,
        blob: Descriptor,
        repository: Origin,
        settings: ImageSettings,
        received: Callable[[int], None],
    ) -> None:
        self.blob = blob
        self.cancel = Cancel()
        self._content = content
        self._repository = repository
        self._settings = settings
        self._received = received
        self._changed = threading.Condition()
        self._available = 0
        self._verified = False
        self._failed = False
        self._mixed = False
        self._troubles: list[str] = []
        self._fd = os.open(content.part(blob.digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def available(self) -> int:
        """How many bytes are here, those of an earlier attempt included."""
        return self._available

    @property
    def doubtful(self) -> bool:
        """Whether the bytes, if they are wrong, may be had right by another attempt."""
        return self._mixed or self._repository.doubtful(self.blob.digest)

    def run(self) -> None:
        """Receive, verify and publish the blob; what was received stays for a later attempt only if it may be right.

        Raises:
            StalePartError, DataLossError: the bytes are not those of the digest or have another size.
            UnavailableError, NotFoundError, UnauthenticatedError, PermissionDeniedError: the registry.
            ResourceExhaustedError: the disk is full.
            AbortedError: cancelled.
        """
        keep = False
        try:
            self._receive()
            keep = True
        except (UnavailableError, AbortedError):
            keep = self._available > 0
            raise
        except OSError as error:
            raise disk_error(error, f"storing blob {self.blob.digest}") from None
        finally:
            if not keep:
                self._content.drop_part(self.blob.digest)
            with self._changed:
                self._failed = not self._verified
                self._changed.notify_all()

    def close(self) -> None:
        """Let go of the file, after `run`; readers have their own hold on it."""
        os.close(self._fd)

    def reader(self, cancel: Cancel) -> "Reader":
        """Return a reader; until `close`."""
        # Opened anew, since what reads it may not write it.
        return Reader(self, os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC), cancel)

    def wait(self, position: int, cancel: Cancel) -> int:
        """Return how many bytes there are, once there are more than `position` or all are verified."""
        with self._changed:
            while not (self._available > position or self._verified or self._failed or cancel.cancelled):
                self._changed.wait(0.5)
            if self._failed or cancel.cancelled:
                raise AbortedError(f"blob {self.blob.digest}: the download ended")
            return self._available

    # --- the receiving thread ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        digest = hashlib.new(self.blob.digest.partition(":")[0])
        self._mixed = self._rehash(digest.update)
        failures = 0
        pause = self._settings.retry_seconds
        while self._available < self.blob.size:
            before = self._available
            try:
                self._stream(digest.update)
            except (BrokenError, DataLossError) as error:
                self._check_cancel()
                if self._elsewhere(error):
                    continue
                if isinstance(error, DataLossError):
                    raise
                failures = 1 if self._available > before else failures + 1
                if failures >= self._settings.attempts:
                    raise RegistryUnavailableError(f"{self._what()}: {self._told()}{error}") from None
                self.cancel.pause(min(pause * failures, self._settings.retry_limit_seconds))
        got = f"{digest.name}:{digest.hexdigest()}"
        if got != self.blob.digest:
            wrong = StalePartError(f"{self._what()}: {self._told()}the bytes received have the digest {got}")
            raise wrong if self._elsewhere(wrong) or self._mixed else DataLossError(str(wrong))
        with self._changed:
            self._verified = True
            self._changed.notify_all()
        self._content.publish(self._fd, self._content.part(self.blob.digest), self.blob.digest)

    def _elsewhere(self, problem: CrishimError) -> bool:
        """Have what is missing come from another place, if there is one; what is here is kept."""
        if not self._repository.other(self.blob.digest, problem):
            return False
        self._mixed = self._available > 0
        self._troubles.append(str(problem))
        return True

    def _told(self) -> str:
        """Return what went wrong with mirrors before, to stand before what goes wrong now."""
        return "".join(f"{trouble}; " for trouble in dict.fromkeys(self._troubles))

    def _what(self) -> str:
        return f"{self._repository.name}: blob {self.blob.digest}"

    def _rehash(self, update: Callable[[bytes], object]) -> bool:
        """Take over what an earlier attempt left; tell whether there was something."""
        size = os.fstat(self._fd).st_size
        if size > self.blob.size:
            os.ftruncate(self._fd, 0)
            size = 0
        position = 0
        while position < size:
            self._check_cancel()
            data = os.pread(self._fd, min(_CHUNK, size - position), position)
            update(data)
            position += len(data)
            self._advance(position)
        return size > 0

    def _stream(self, update: Callable[[bytes], object]) -> None:
        """Receive from one answer until it ends or breaks."""
        self._check_cancel()
        response, start = self._repository.blob(self.blob.digest, self._available, self.blob.urls, self.cancel)
        try:
            stated = self._check_length(response, start)
            self._discard(response, self._available - start)
            while self._available < self.blob.size:
                self._check_cancel()
                data = response.read(min(_CHUNK, self.blob.size - self._available))
                if not data:
                    raise DataLossError(
                        f"{self._what()}: {response.host}: it ends after {self._available} of {self.blob.size} bytes"
                    )
                self._store(data)
                update(data)
                self._advance(self._available + len(data))
                self._received(len(data))
            if not stated and response.read(1):
                raise DataLossError(f"{self._what()}: {response.host}: it is longer than its {self.blob.size} bytes")
        finally:
            response.close()

    def _check_length(self, response: Response, start: int) -> bool:
        stated = number(response.headers.get("Content-Length", ""))
        if stated is None:
            return False
        if start + stated != self.blob.size:
            raise DataLossError(
                f"{self._what()}: the manifest says {self.blob.size} bytes, {response.host} has {start + stated}"
            )
        return True

    def _discard(self, response: Response, size: int) -> None:
        """Skip what is already here: the server does not know ranges and sends all of it again."""
        while size > 0:
            self._check_cancel()
            data = response.read(min(_CHUNK, size))
            if not data:
                raise BrokenError(f"{response.host}: the answer is shorter than what was received before")
            size -= len(data)

    def _store(self, data: bytes) -> None:
        position = self._available
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, position)
            position += written
            view = view[written:]
        if position // _WRITEBACK != self._available // _WRITEBACK:
            start_writeback(self._fd, 0, position)

    def _advance(self, position: int) -> None:
        with self._changed:
            self._available = position
            self._changed.notify_all()

    def _check_cancel(self) -> None:
        if self.cancel.cancelled:
            raise AbortedError(f"blob {self.blob.digest}: the download was cancelled")


class Reader:
    """Follows a blob that is being received."""

    def __init__(self, fetch: Fetch, fd: int, cancel: Cancel) -> None:
        self.size = fetch.blob.size
        self._fetch = fetch
        self._fd = fd
        self._cancel = cancel

    def fileno(self) -> int:
        """See Source."""
        return self._fd

    def wait(self, position: int) -> int:
        """See Source."""
        return self._fetch.wait(position, self._cancel)

    def close(self) -> None:
        """See Source."""
        os.close(self._fd)


class BlobFile:
    """A blob that is here already."""

    def __init__(self, path: str, cancel: Cancel) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataLossError(f"{path}: {error.strerror}; pull the image again") from None
        self.size = os.fstat(self._fd).st_size
        self._cancel = cancel

    def fileno(self) -> int:
        """See Source."""
        return self._fd

    def wait(self, position: int) -> int:  # noqa: ARG002  all of it is here
        """See Source."""
        if self._cancel.cancelled:
            raise AbortedError("cancelled")
        return self.size

    def close(self) -> None:
        """See Source."""
        os.close(self._fd)
