"""Archives between files or pipes and the daemon's streams.

Invariants: an archive is never read from or written to a terminal; a file that is written has its name only when it is
whole; a file that cannot be read to its end never looks whole to the daemon, because the call is cancelled.
"""

import contextlib
import io
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from crishim.errors import CrishimError, InternalError, InvalidArgumentError, NotFoundError

_PIECE = 1 << 20


class Upload:
    """Sends a file, or standard input, after its options.

    Args:
        path: the file; empty or `-` for standard input.
        first: the message with the options.
        wrap: makes a message of a piece of data.

    Raises:
        InvalidArgumentError: standard input is a terminal.
        NotFoundError: it cannot be opened.
    """

    def __init__(self, path: str, first: Any, wrap: Callable[[bytes], Any]) -> None:
        self._name = "standard input" if path in {"", "-"} else path
        self._first = first
        self._wrap = wrap
        self._fault: OSError | None = None
        if path in {"", "-"} and os.isatty(0):
            raise InvalidArgumentError("", "standard input is a terminal: redirect an archive, or name one with -i")
        try:
            # Not sys.stdin: an interpreter that leaves aborts if a thread holds its lock, waiting for input.
            self._file = io.FileIO(0, closefd=False) if path in {"", "-"} else io.FileIO(path)
        except OSError as error:
            raise NotFoundError(f"{self._name}: {error.strerror}") from None

    def messages(self) -> Iterator[Any]:
        """Yield the messages; runs in a thread of grpc's, which cancels the call if reading fails."""
        logging.getLogger("grpc").addHandler(logging.NullHandler())  # what it would say is said by `faults`
        yield self._first
        try:
            while data := self._file.read(_PIECE):
                yield self._wrap(data)
        except OSError as error:
            self._fault = error
            raise

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Raise what the reading failed by, in place of the cancelled call; close the file at the end."""
        try:
            yield
        except CrishimError:
            if self._fault is not None:
                raise InternalError(f"reading {self._name}: {self._fault.strerror}") from None
            raise
        finally:
            self._file.close()


def write(pieces: Iterator[bytes], path: str) -> None:
    """Write an archive to a file, or to standard output if `path` is empty or `-`.

    Raises:
        InvalidArgumentError: standard output is a terminal.
        InternalError: the file cannot be written.
    """
    if path in {"", "-"}:
        if sys.stdout.isatty():
            raise InvalidArgumentError("", "standard output is a terminal: redirect it, or name a file with -o")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    try:
        with _whole(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise InternalError(f"writing {path}: {error.strerror}") from None


@contextlib.contextmanager
def _whole(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name at the end; devices and pipes are written to as they are."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "wb", buffering=0) as file:
                yield file
            return
    target = os.path.realpath(path)
    temporary = f"{target}.{os.urandom(4).hex()}.part"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            yield file
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
