"""A server's side of one SPDY/3.1 connection without its socket: bytes in, events out, bytes to send in `take`.

The peers are Kubernetes' clients, all with moby/spdystream. That knows no windows: it neither sends nor heeds
WINDOW_UPDATE, and pays no attention to SETTINGS. So windows bind us only towards a peer that has shown that it has them
(`room`), and a peer that has them gets the largest at once; the pace is TCP's. It waits for SYN_REPLY before it sends
data, takes a data frame of any size, answers pings that we send, and ends streams with an empty last frame or a reset.

Invariants: at most `limit` streams are open, however many the peer asks for; nothing of a stream is kept once both
sides have ended it or one has reset it; an event is given for open streams only.
Source: draft-mbelshe-httpbis-spdy-00; SPDY/3.1's window for the connection as a whole.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crishim.streaming.spdy import frames
from crishim.streaming.spdy.frames import Control, Goodbye, Piece, Setting, Status, Type
from crishim.streaming.spdy.headers import Packer, SpdyError, Unpacker

INITIAL_WINDOW = 65536
LARGEST_WINDOW = 0x7FFFFFFF
_RENEW = 1 << 29
"""Bytes received after which a window is filled up again."""
MAX_PENDING = 64 * 1024
"""Bytes of answers to the peer's control frames that may wait: one that asks without reading is let go."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has opened a stream: `accept` or `reset` it. `last`: it will send nothing."""

    stream: int
    headers: Mapping[str, str]
    last: bool


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream; a view of what was fed. `last`: the peer has ended its side."""

    stream: int
    data: memoryview
    last: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer has ended a stream, both sides of it."""

    stream: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The peer opens no more streams (GOAWAY); those that are open go on."""


Event = Opened | Data | Reset | Gone


class _Stream:
    __slots__ = ("received", "receiving", "sending", "window")

    def __init__(self, window: int, *, receiving: bool, sending: bool) -> None:
        self.receiving = receiving
        self.sending = sending
        self.received = 0
        self.window = window


class Connection:
    """One connection; `limit` streams at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reader = frames.Reader()
        self._packer = Packer()
        self._unpacker = Unpacker()
        self._streams: dict[int, _Stream] = {}
        self._newest = 0
        self._out = bytearray()
        self._windows = False  # whether the peer has them
        self._initial = INITIAL_WINDOW  # of its streams
        self._window = INITIAL_WINDOW  # of the connection
        self._received = 0
        self._out += frames.settings(
            [(Setting.MAX_CONCURRENT_STREAMS, limit), (Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)]
        )
        self._out += frames.numbers(Type.WINDOW_UPDATE, 0, LARGEST_WINDOW - INITIAL_WINDOW)

    # --- from the peer ------------------------------------------------------------------------

    def feed(self, data: bytes) -> Iterator[Event]:
        """Give the events of these bytes; stopping half-way loses the rest.

        Raises:
            SpdyError: the peer breaks the protocol; say `goodbye` and close.
        """
        for frame in self._reader.feed(data):
            event = self._piece(frame) if isinstance(frame, Piece) else self._control(frame)
            if event is not None:
                yield event
            if len(self._out) > MAX_PENDING:
                raise SpdyError("more answers are asked for than are read")

    def _piece(self, piece: Piece) -> Event | None:
        self._received = self._renewed(0, self._received + len(piece.data))
        stream = self._streams.get(piece.stream)
        if stream is None or not stream.receiving:
            return None  # it may have been under way when the stream was reset
        stream.received = self._renewed(piece.stream, stream.received + len(piece.data))
        if piece.last:
            stream.receiving = False
            self._settle(piece.stream, stream)
        return Data(piece.stream, piece.data, piece.last)

    def _renewed(self, stream: int, received: int) -> int:
        if received < _RENEW:
            return received
        self._out += frames.numbers(Type.WINDOW_UPDATE, stream, received)
        return 0

    def _control(self, frame: Control) -> Event | None:
        match frame.kind:
            case Type.SYN_STREAM:
                return self._opened(frame)
            case Type.RST_STREAM:
                number = frames.stream_of(frame.numbers(2)[0])
                return Reset(number) if self._streams.pop(number, None) is not None else None
            case Type.PING:
                if frame.numbers(1)[0] % 2:  # the peer's own; even ones would answer ours
                    self._out += frames.control(Type.PING, frame.body[:4])
            case Type.GOAWAY:
                return Gone()
            case Type.SETTINGS:
                self._settings(frame)
            case Type.WINDOW_UPDATE:
                self._update(*frame.numbers(2))
            case Type.SYN_REPLY | Type.HEADERS:
                return self._headers(frame)
            case _:  # section 2.2.1: what is not known is passed over
                pass
        return None

    def _opened(self, frame: Control) -> Event | None:
        number = frames.stream_of(frame.numbers(2)[0])
        headers = self._unpacker.unpack(frame.body[10:])
        if not number % 2 or number <= self._newest:
            raise SpdyError(f"stream {number} is opened after {self._newest}")
        self._newest = number
        if len(self._streams) >= self._limit:
            self._out += frames.numbers(Type.RST_STREAM, number, Status.REFUSED_STREAM)
            return None
        last = bool(frame.flags & frames.FIN)
        stream = _Stream(self._initial, receiving=not last, sending=not frame.flags & frames.UNIDIRECTIONAL)
        self._streams[number] = stream
        self._settle(number, stream)
        return Opened(number, headers, last)

    def _headers(self, frame: Control) -> Event | None:
        """Take more headers of a stream, which mean nothing here; but they may end it."""
        number = frames.stream_of(frame.numbers(1)[0])
        self._unpacker.unpack(frame.body[4:])
        return self._piece(Piece(number, memoryview(b""), last=True)) if frame.flags & frames.FIN else None

    def _settings(self, frame: Control) -> None:
        size = frames.read_settings(frame).get(Setting.INITIAL_WINDOW_SIZE)
        if size is None:
            return
        self._windows = True
        size = min(size, LARGEST_WINDOW)
        for stream in self._streams.values():
            stream.window += size - self._initial
        self._initial = size

    def _update(self, number: int, delta: int) -> None:
        self._windows = True
        number = frames.stream_of(number)
        if not number:
            self._window = min(self._window + delta, LARGEST_WINDOW)
        elif (stream := self._streams.get(number)) is not None:
            stream.window = min(stream.window + delta, LARGEST_WINDOW)

    # --- to the peer --------------------------------------------------------------------------

    def take(self) -> bytes:
        """Return what has to be sent now, before anything else."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def accept(self, number: int) -> None:
        """Answer a stream that was opened."""
        body = struct.pack(">I", number) + self._packer.pack({})
        self._out += frames.control(Type.SYN_REPLY, body)

    def reset(self, number: int, status: Status = Status.CANCEL) -> None:
        """End a stream, both sides of it; one that has ended is fine."""
        if self._streams.pop(number, None) is not None:
            self._out += frames.numbers(Type.RST_STREAM, number, status)

    def sendable(self, number: int) -> bool:
        """Tell whether the stream takes data from us."""
        stream = self._streams.get(number)
        return stream is not None and stream.sending

    def room(self, number: int) -> int:
        """Return how many bytes may be sent on a stream now; 0 until a window grows."""
        stream = self._streams.get(number)
        if stream is None or not stream.sending:
            return 0
        return max(0, min(self._window, stream.window)) if self._windows else frames.MAX_DATA

    def data_head(self, number: int, size: int, *, last: bool = False) -> bytes:
        """Return the head of a data frame on a stream that is `sendable`; exactly `size` bytes have to follow."""
        stream = self._streams[number]
        stream.window -= size
        self._window -= size
        if last:
            stream.sending = False
            self._settle(number, stream)
        return frames.data_head(number, size, last=last)

    def goodbye(self, reason: Goodbye = Goodbye.OK) -> None:
        """Say that this was all."""
        self._out += frames.numbers(Type.GOAWAY, self._newest, reason)

    def _settle(self, number: int, stream: _Stream) -> None:
        if not stream.receiving and not stream.sending:
            del self._streams[number]
