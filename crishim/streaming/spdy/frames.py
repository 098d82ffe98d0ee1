"""Frames of SPDY/3: bytes in, frames out, and the bytes of frames to send.

A frame has eight bytes of head and up to 16 MiB. Data are given on in the pieces in which they arrive, so a reader
holds no more than one control frame, and those are small. Source: draft-mbelshe-httpbis-spdy-00, section 2.2.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from crishim.streaming.spdy.headers import SpdyError

HEAD = 8
MAX_CONTROL = 64 * 1024
"""Bytes of a control frame that is accepted."""
MAX_DATA = 0xFFFFFF
FIN = 1
UNIDIRECTIONAL = 2

_HEAD = struct.Struct(">II")
_CONTROL = 0x80030000
_STREAM_MASK = 0x7FFFFFFF


class Type(IntEnum):
    """Kinds of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Status(IntEnum):
    """Reasons of RST_STREAM."""

    PROTOCOL_ERROR = 1
    REFUSED_STREAM = 3
    CANCEL = 5
    FLOW_CONTROL_ERROR = 7


class Goodbye(IntEnum):
    """Reasons of GOAWAY."""

    OK = 0
    PROTOCOL_ERROR = 1


class Setting(IntEnum):
    """Ids of SETTINGS that mean something here."""

    MAX_CONCURRENT_STREAMS = 4
    INITIAL_WINDOW_SIZE = 7


@dataclass(frozen=True, slots=True)
class Control:
    """A control frame; `kind` may be one that nobody knows."""

    kind: int
    flags: int
    body: bytes

    def numbers(self, count: int) -> tuple[int, ...]:
        """Return the first so many 32-bit numbers; SpdyError if the frame is shorter."""
        if len(self.body) < 4 * count:
            raise SpdyError(f"a frame of kind {self.kind} has {len(self.body)} bytes")
        return struct.unpack_from(f">{count}I", self.body)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a data frame; `last`: the sender has ended the stream with it."""

    stream: int
    data: memoryview
    last: bool


class Reader:
    """Cuts bytes into frames."""

    def __init__(self) -> None:
        self._kept = bytearray()  # a head, or a control frame, that is not whole yet
        self._stream = 0
        self._left = 0  # of the data frame under way
        self._last = False

    def feed(self, data: bytes) -> Iterator[Control | Piece]:
        """Give the frames that are whole with these bytes; pieces are views of them.

        Raises:
            SpdyError: these are no frames; the reader is of no use any more.
        """
        view = memoryview(data)
        while True:
            if self._left:
                if not view:
                    return
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                yield Piece(self._stream, piece, self._last and not self._left)
                continue
            view = self._keep(view, HEAD)
            if len(self._kept) < HEAD:
                return
            word, length = _HEAD.unpack_from(self._kept)
            flags, length = length >> 24, length & MAX_DATA
            if not word >> 31:
                self._kept.clear()
                if not word:
                    raise SpdyError("data for stream 0")
                self._stream, self._left, self._last = word, length, bool(flags & FIN)
                if not length:
                    yield Piece(word, view[:0], self._last)
                continue
            if word & 0xFFFF0000 != _CONTROL:
                raise SpdyError(f"a control frame of version {word >> 16 & 0x7FFF}, but only 3 is spoken here")
            if length > MAX_CONTROL:
                raise SpdyError(f"a control frame of {length} bytes, but only {MAX_CONTROL} are taken here")
            view = self._keep(view, HEAD + length)
            if len(self._kept) < HEAD + length:
                return
            control = Control(word & 0xFFFF, flags, bytes(self._kept[HEAD:]))
            self._kept.clear()
            yield control

    def _keep(self, view: memoryview, size: int) -> memoryview:
        missing = max(0, size - len(self._kept))
        self._kept += view[:missing]
        return view[missing:]


def data_head(stream: int, size: int, *, last: bool) -> bytes:
    """Return the head of a data frame; `size` bytes follow."""
    return _HEAD.pack(stream, size | (FIN << 24 if last else 0))


def control(kind: Type, body: bytes, flags: int = 0) -> bytes:
    """Return a control frame."""
    return _HEAD.pack(_CONTROL | kind, len(body) | flags << 24) + body


def numbers(kind: Type, *values: int) -> bytes:
    """Return a control frame that holds 32-bit numbers."""
    return control(kind, struct.pack(f">{len(values)}I", *values))


def settings(values: Sequence[tuple[Setting, int]]) -> bytes:
    """Return a SETTINGS frame."""
    return numbers(Type.SETTINGS, len(values), *(number for pair in values for number in pair))


def read_settings(frame: Control) -> dict[int, int]:
    """Return id → value of a SETTINGS frame."""
    count = frame.numbers(1)[0]
    if count > len(frame.body) // 8:
        raise SpdyError(f"SETTINGS of {count} values in {len(frame.body)} bytes")
    found = frame.numbers(1 + 2 * count)[1:]
    return {number & 0xFFFFFF: value for number, value in zip(found[::2], found[1::2], strict=True)}


def stream_of(number: int) -> int:
    """Return the id of a stream without its reserved bit."""
    return number & _STREAM_MASK
