"""One blob on its way to a registry: skipped, mounted, or sent whole or in pieces, and taken up again where it broke.

```
has it? ─yes─► PRESENT
  └no─ another repository of the host has it: mount ─201─► MOUNTED
         └202 or nothing to mount: session ─► PUT (small) or PATCH … PATCH, PUT ─► DONE
                break, 5xx, 429, 416: pause, GET the status ─► go on from there; 404: has it? else a new session
```
Blocking: `run` belongs into a thread; `state` and `current` may be read from others. Invariant: memory is one piece of
64 KiB, whatever the blob's size; failures in a row without a new highest offset are bounded.
"""

import os
from collections.abc import Callable, Sequence

from crishim.errors import AbortedError, CrishimError, DataLossError, FailedPreconditionError
from crishim.images.progress import State
from crishim.images.registry.exchange import BusyError
from crishim.images.registry.target import Session, Target
from crishim.images.registry.transport import BrokenError, Cancel, ConnectError

_MOUNT_ATTEMPTS = 2


class _Slice:
    """Bytes `first` to `last` of a file as a request's body; counts what is read of it."""

    def __init__(self, fd: int, first: int, last: int, cancel: Cancel, count: Callable[[int, int], None]) -> None:
        self._fd = fd
        self._position = first
        self._last = last
        self._cancel = cancel
        self._count = count

    def read(self, size: int = -1, /) -> bytes:
        if self._cancel.cancelled:
            raise AbortedError("the push was cancelled")
        left = self._last - self._position
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._position)
        if not data and left:
            raise DataLossError("the blob on disk has become shorter; pull the image again")
        self._position += len(data)
        self._count(self._position, len(data))
        return data


class Upload:
    """Sends one blob.

    Args:
        target: where to.
        digest: the blob's.
        size: its bytes.
        path: where it lies.
        sources: paths of other repositories of the host that probably have it.
        sent: told the number of bytes that went over the wire, piece by piece.
    """

    def __init__(
        self,
        target: Target,
        digest: str,
        size: int,
        path: str,
        sources: Sequence[str],
        sent: Callable[[int], None],
    ) -> None:
        self.state = State.WAITING
        self.current = 0
        self.cancel = Cancel()
        self._target = target
        self._digest = digest
        self._size = size
        self._path = path
        self._sources = sources
        self._sent = sent
        self._session: Session | None = None
        self._certain = True

    def run(self) -> None:
        """Have the blob in the registry.

        Raises:
            UnavailableError, NotFoundError, UnauthenticatedError, PermissionDeniedError, FailedPreconditionError: the
                registry.
            DataLossError: the blob on disk is damaged.
            AbortedError: cancelled.
        """
        with self._target.telling(f"blob {self._digest}", self.cancel):
            if self._target.has(self._digest, self.cancel, self._target.settings.attempts):
                self.state = State.PRESENT
            elif self._mounted():
                self.state = State.MOUNTED
            else:
                self.state = State.TRANSFERRING
                self._from_disk()
                self.state = State.DONE
                self.current = self._size

    def _from_disk(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataLossError(f"{self._path}: {error.strerror}; pull the image again") from None
        try:
            self._send(fd)
        finally:
            os.close(fd)

    def _mounted(self) -> bool:
        for source in self._sources[:_MOUNT_ATTEMPTS]:
            before = self._session
            try:
                self._session = self._target.mount(self._digest, source, self.cancel)
            except CrishimError:
                if self.cancel.cancelled:
                    raise
                continue  # it may not be ours to read: the upload says whether the registry takes anything at all
            if before is not None:
                self._target.abandon(before, self.cancel)
            if self._session is None:
                return True
        return False

    def _send(self, fd: int) -> None:
        settings = self._target.settings
        failures = best = 0
        while True:
            wait = 0.0
            try:
                if self._advance(fd):
                    return
            except (BrokenError, ConnectError) as error:
                problem: CrishimError = error
            except BusyError as error:
                problem, wait = error, error.seconds
            else:
                offset = self._session.offset if self._session else 0
                if offset > best:
                    best, failures = offset, 0
                continue
            self._certain = False
            failures += 1
            if failures >= settings.attempts or self.cancel.cancelled:
                raise problem
            wait = max(wait, settings.retry_seconds * 2 ** (failures - 1))
            self.cancel.pause(min(wait, settings.retry_limit_seconds))

    def _advance(self, fd: int) -> bool:
        """Send one request, and tell whether the registry has the blob now."""
        session = self._session
        if session is None:
            if not self._certain and self._target.has(self._digest, self.cancel, 1):
                return True
            self._session = self._target.begin(self.cancel, 1)
            self._certain = True
            return False
        if not self._certain:
            self._look(session)
            return False
        rest = self._size - session.offset
        if rest < 0:
            raise FailedPreconditionError(f"the registry says that it has {session.offset} of {self._size} bytes")
        piece = max(self._target.settings.chunk_bytes, session.minimum)
        if rest == 0 or (session.offset == 0 and rest <= piece):
            self._target.commit(session, self._digest, self._body(fd, session.offset, rest), rest, self.cancel)
            return True
        length = min(piece, rest)
        self._target.patch(session, self._body(fd, session.offset, length), length, self.cancel)
        return False

    def _look(self, session: Session) -> None:
        if not self._target.look(session, self.cancel):
            self._session = None
            raise BrokenError("the registry does not know the upload any more")
        self.current = session.offset
        self._certain = True

    def _body(self, fd: int, first: int, length: int) -> Callable[[], _Slice]:
        return lambda: _Slice(fd, first, first + length, self.cancel, self._count)

    def _count(self, position: int, size: int) -> None:
        self.current = position
        self._sent(size)
