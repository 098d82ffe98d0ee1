"""A client's side of SPDY/3.1 as moby/spdystream behaves: it knows no windows and waits for replies."""

import struct
from dataclasses import dataclass, field

from crishim.streaming.spdy import frames
from crishim.streaming.spdy.frames import Control, Piece, Type
from crishim.streaming.spdy.headers import Packer, Unpacker


@dataclass
class Client:
    """Makes a client's frames, and keeps what came: the bytes of each stream, and what ended it."""

    packer: Packer = field(default_factory=Packer)
    unpacker: Unpacker = field(default_factory=Unpacker)
    reader: frames.Reader = field(default_factory=frames.Reader)
    replied: set[int] = field(default_factory=set)
    received: dict[int, bytearray] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    newest: int = -1

    def open(self, *, last: bool = False, **headers: str) -> tuple[int, bytes]:
        self.newest += 2
        body = struct.pack(">IIH", self.newest, 0, 0) + self.packer.pack(headers)
        return self.newest, frames.control(Type.SYN_STREAM, body, frames.FIN if last else 0)

    def send(self, stream: int, data: bytes, *, last: bool = False) -> bytes:
        return frames.data_head(stream, len(data), last=last) + data

    def feed(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            if isinstance(frame, Piece):
                self.received.setdefault(frame.stream, bytearray()).extend(frame.data)
                if frame.last:
                    self.ended[frame.stream] = "closed"
                continue
            self.controls.append(frame)
            if frame.kind == Type.SYN_REPLY:
                self.unpacker.unpack(frame.body[4:])
                self.replied.add(frame.numbers(1)[0])
            elif frame.kind == Type.RST_STREAM:
                self.ended[frame.numbers(1)[0]] = f"reset {frame.numbers(2)[1]}"

    def of(self, kind: Type) -> list[Control]:
        return [control for control in self.controls if control.kind == kind]
