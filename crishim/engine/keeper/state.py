"""A container's state file: what a keeper knows of it, for whoever comes after that keeper.

```
0       magic · length of the record · length of "running" (0: its program does not run yet)
24      the note: device, inode and length of the log, time, kind, number
128     four places, two a stream: length, number, text of the unfinished line (if it is short)
4096    four texts of 16 KiB, for long unfinished lines
69632   the record as JSON, then `Running` as JSON
```
Mapped memory: a store costs nothing and stays when its process is killed. A kill falls between two stores, so what says
that others hold is stored last, in one store of a word: the magic word after the record, the length of "running" after
its text, a number after what it numbers. Chunks of output are numbered: `begin` notes the next number, with all that
is needed to do the chunk again; `finish` stores the unfinished line in the place of its stream that does not hold, and
with it the number, which says that the chunk is done.

A store into a hole on a full tmpfs is SIGBUS, so every page is reserved before it is stored to: the first one and the
record's when the file is made, those of a long line when there is one (`room`).
"""

import contextlib
import json
import mmap
import os
import struct
from typing import NamedTuple, Self

from crishim.engine.keeper.records import LINE_LIMIT
from crishim.engine.messages import ContainerRecord, Running

TAIL = 2
"""Added to a kind, which is a stream's index: no output, but the stream's unfinished line is written at its end."""

SHORT = 976
"""An unfinished line up to this length needs no `room`."""

_MAGIC = int.from_bytes(b"crislog1", "little")
_PAGE = 4096
_NOTE_AT = 24
_PLACES_AT = 128
_PLACE_SIZE = 992
_PLACES = 4
_RECORD_AT = _PAGE + _PLACES * LINE_LIMIT
_RUNNING_ROOM = 384

# native mode: each word is one store, in this order
_WORD = struct.Struct("@Q")
_HEAD = struct.Struct("@QQQ")
_NOTE = struct.Struct("@QQQQQQ")
_FILE = struct.Struct("@QQ")
_PLACE = struct.Struct("@QQ")


class Note(NamedTuple):
    """What was noted before a chunk was taken; `number` last, and `kind` after what it is about."""

    device: int
    inode: int
    length: int
    time: int
    kind: int
    number: int


class State:
    """One container's file, mapped. `number` is that of the last chunk done, `pending` the unfinished lines."""

    __slots__ = ("_holds", "_map", "_path", "_reserved", "number", "pending", "record")

    def __init__(self, path: str, fd: int, record: ContainerRecord) -> None:
        self._path = path
        self._map = mmap.mmap(fd, _RECORD_AT)
        self._reserved: set[int] = set()
        self._holds = [0, 2]
        self.record = record
        self.number = 0
        self.pending = [b"", b""]

    @classmethod
    def make(cls, path: str, record: ContainerRecord) -> Self:
        """Make the file.

        Raises:
            OSError: it cannot be made, or there is no room for it; nothing is left.
        """
        text = json.dumps(record, separators=(",", ":")).encode()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _PAGE)
            os.posix_fallocate(fd, _RECORD_AT, len(text) + _RUNNING_ROOM)
            os.pwrite(fd, text, _RECORD_AT)
            state = cls(path, fd, record)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        _WORD.pack_into(state._map, 8, len(text))
        _WORD.pack_into(state._map, 0, _MAGIC)
        return state

    @classmethod
    def load(cls, path: str) -> Self:
        """Take over the file of an earlier keeper.

        Raises:
            ValueError: it was not made to its end, or is not one.
            OSError: it cannot be opened.
        """
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            magic, length, running = _HEAD.unpack(os.pread(fd, _HEAD.size, 0).ljust(_HEAD.size, b"\0"))
            text = b""
            if magic == _MAGIC and length + running <= os.fstat(fd).st_size:
                text = os.pread(fd, length + running, _RECORD_AT)
            if not text or len(text) != length + running:
                raise ValueError(f"{path}: is no whole state file of a container")
            record: ContainerRecord = json.loads(text[:length])
            if running:
                record["running"] = json.loads(text[length:])
            state = cls(path, fd, record)
        finally:
            os.close(fd)
        try:
            state._find()
        except ValueError:
            state.close()
            raise
        return state

    def runs(self, running: Running) -> None:
        """Write down that its program runs.

        Raises:
            OSError: there is no room for it.
        """
        text = json.dumps(running, separators=(",", ":")).encode()
        fd = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            at = _RECORD_AT + _WORD.unpack_from(self._map, 8)[0]
            os.posix_fallocate(fd, at, len(text))
            os.pwrite(fd, text, at)
        finally:
            os.close(fd)
        _WORD.pack_into(self._map, 16, len(text))
        self.record = {**self.record, "running": running}

    def begin(self, kind: int, now: int, log: tuple[int, int], length: int) -> None:
        """Note that a chunk is about to be taken, and where its records will go."""
        _NOTE.pack_into(self._map, _NOTE_AT, *log, length, now, kind, self.number + 1)

    def finish(self, index: int, pending: bytes) -> None:
        """Say that the chunk is done; `pending` is its stream's unfinished line, for which there is `room`."""
        self.number = number = self.number + 1
        self._holds[index] = place = self._holds[index] ^ 1
        self.pending[index] = pending
        if pending:
            at = _text_at(place, len(pending))
            self._map[at : at + len(pending)] = pending
        _PLACE.pack_into(self._map, _PLACES_AT + place * _PLACE_SIZE, len(pending), number)

    def room(self, index: int) -> bool:
        """Reserve what a long unfinished line needs; False if the file system is full."""
        place = self._holds[index] ^ 1
        if place not in self._reserved:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.posix_fallocate(fd, _text_at(place, LINE_LIMIT), LINE_LIMIT)
                finally:
                    os.close(fd)
            except OSError:
                return False
            self._reserved.add(place)
        return True

    def note(self) -> Note:
        """Return the last note; its chunk is done if its number is `number`."""
        return Note._make(_NOTE.unpack_from(self._map, _NOTE_AT))

    def writes_to(self, device: int, inode: int) -> None:
        """Note which file the log is now, between chunks."""
        _FILE.pack_into(self._map, _NOTE_AT, device, inode)

    def close(self) -> None:
        """Unmap it; the file stays for another keeper."""
        self._map.close()

    def remove(self) -> None:
        """Unmap it and remove the file."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _find(self) -> None:
        """Find the unfinished lines that hold: of the two places of a stream, the one with the higher number."""
        for index in (0, 1):
            found = [_PLACE.unpack_from(self._map, _PLACES_AT + n * _PLACE_SIZE) for n in (2 * index, 2 * index + 1)]
            newer = int(found[1][1] > found[0][1])
            length, number = found[newer]
            if length > LINE_LIMIT:
                raise ValueError(f"{self._path}: an unfinished line of {length} bytes")
            place = 2 * index + newer
            at = _text_at(place, length)
            self._holds[index] = place
            self.pending[index] = self._map[at : at + length]
            self.number = max(self.number, number)


def _text_at(place: int, length: int) -> int:
    if length > SHORT:
        return _PAGE + place * LINE_LIMIT
    return _PLACES_AT + place * _PLACE_SIZE + 16
