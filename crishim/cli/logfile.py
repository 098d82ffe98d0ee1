"""A CRI log while it grows and is rotated: whole records, in order, each once.

A record is `TIME STREAM TAG CONTENT`; tag P says that the line goes on in the next record of its stream. Rotation
renames the file and opens a new one at its path (ReopenContainerLog): what the old one still holds is read first.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from types import TracebackType
from typing import Self, TextIO

from crishim.clock import moment
from crishim.errors import NotFoundError, PermissionDeniedError

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    """One record."""

    stamp: bytes
    stream: bytes
    tag: bytes
    content: bytes

    @property
    def time(self) -> datetime:
        """When it was written; the beginning of time if that cannot be read."""
        return moment(self.stamp.decode("ascii", "replace")) or datetime.min.replace(tzinfo=UTC)

    def write(self, stream: TextIO, timestamps: bool) -> None:
        """Write what the container has written, as bytes."""
        data = self.content if self.tag == b"P" else self.content + b"\n"
        stream.buffer.write(self.stamp + b" " + data if timestamps else data)


class LogFile:
    """A log at a path; a context manager.

    Raises:
        NotFoundError, PermissionDeniedError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest = b""
        self._file = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def seek_tail(self, count: int) -> None:
        """Go to the last `count` records; to the first if `count` is negative."""
        if count < 0:
            return
        position = self._file.seek(0, os.SEEK_END)
        if not count:
            return
        newlines = 0
        while position > 0:
            start = max(position - _BLOCK, 0)
            self._file.seek(start)
            block = self._file.read(position - start)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                newlines += 1
                if newlines > count:
                    self._file.seek(start + at + 1)
                    return
            position = start
        self._file.seek(0)

    def records(self) -> Iterator[Record]:
        """Yield the whole records that have come."""
        while True:
            yield from self._whole()
            if not self._rotated():
                return
            yield from self._whole()  # what came between the last read and the rename
            with contextlib.suppress(NotFoundError):
                fresh = self._open()
                self._file.close()
                self._file, self._rest = fresh, b""

    def _whole(self) -> Iterator[Record]:
        while data := self._file.read(_BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                parts = line.split(b" ", 3)
                if len(parts) == 4:
                    yield Record(*parts)

    def _rotated(self) -> bool:
        """Tell whether another file has the path."""
        try:
            there, ours = os.stat(self._path), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> FileIO:
        try:
            return open(self._path, "rb", buffering=0)
        except PermissionError:
            raise PermissionDeniedError(f"{self._path} is not ours to read, try again as root") from None
        except OSError as error:
            raise NotFoundError(f"{self._path}: {error.strerror}") from None
