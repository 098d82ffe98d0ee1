"""The netlink wire format: headers and attributes, bytes in and values out, no socket.

Sizes and alignment are those of netlink(7): a message is a 16-byte header and a payload, an attribute a 4-byte header
and a value, both padded to 4 bytes; numbers are in the host's byte order unless a protocol says otherwise.
Out of scope: what a payload means (`link`, `address`, `conntrack`, `nft`). Invariant: a reader never looks beyond the
bytes that it was given; cut or lying lengths end in `WireError`, not in an endless loop.
"""

import struct
from collections.abc import Iterator, Sequence
from sys import byteorder
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_BE32 = struct.Struct(">I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_TYPE_MASK = 0x3FFF  # NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type
NESTED = 0x8000

# netlink(7): flags of a message
F_REQUEST = 0x001
F_MULTI = 0x002
F_ACK = 0x004
F_DUMP_INTERRUPTED = 0x010
F_CAPPED = 0x100
F_ACK_TLVS = 0x200
F_EXCL = 0x200
F_DUMP = 0x300
F_CREATE = 0x400
F_APPEND = 0x800

# netlink(7): message types below those of the protocols
ERROR = 2
DONE = 3


class WireError(ValueError):
    """Bytes that are no netlink message: cut off, or a length that cannot be."""


class Message(NamedTuple):
    """One message as it came: type, flags, sequence number, payload without the header."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


class Request(NamedTuple):
    """One message to be sent; `what` says in an error which call failed, like `create link veth0`."""

    kind: int
    flags: int
    payload: bytes
    what: str


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + _PADDING[len(value) & 3]


def u8(kind: int, value: int) -> bytes:
    """Return an attribute of one byte."""
    return attribute(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits, host byte order."""
    return attribute(kind, _U32.pack(value))


def be32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits, network byte order (all of netfilter's)."""
    return attribute(kind, _BE32.pack(value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a C string."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(inner))


def pack(request: Request, sequence: int) -> bytes:
    """Return the message's bytes, padded, so that messages can be joined to a batch."""
    payload = request.payload
    header = HEADER.pack(len(payload) + 16, request.kind, request.flags | F_REQUEST, sequence, 0)
    return header + payload + _PADDING[len(payload) & 3]


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram.

    Raises:
        WireError: a length is below the header's or beyond the data.
    """
    offset = 0
    end = len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > end:
            raise WireError(f"netlink message of {length} bytes at {offset} in {end} bytes")
        yield Message(kind, flags, sequence, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from `offset` on, by type; of a repeated type the last.

    Raises:
        WireError: a length is below the header's or beyond the data.
    """
    return dict(_iterate(data, offset))


def elements(data: bytes) -> list[bytes]:
    """Return the values of a list of attributes, in order, whatever their types."""
    return [value for _, value in _iterate(data, 0)]


def _iterate(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise WireError(f"netlink attribute {kind & _TYPE_MASK} of {length} bytes at {offset} in {end} bytes")
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def get_u32(values: dict[int, bytes], kind: int) -> int:
    """Return a 32-bit attribute, 0 if it is absent or of another size."""
    value = values.get(kind, b"")
    return int(_U32.unpack(value)[0]) if len(value) == 4 else 0


def get_text(values: dict[int, bytes], kind: int) -> str:
    """Return a C string attribute, "" if it is absent."""
    return values.get(kind, b"").split(b"\0", 1)[0].decode("utf-8", "replace")


def join(requests: Sequence[Request], first: int) -> bytes:
    """Return the batch of `requests`, numbered from `first`."""
    return b"".join(pack(request, first + n) for n, request in enumerate(requests))


def fault(message: Message) -> tuple[int, str]:
    """Return (errno, the kernel's own words) of an ERROR or DONE message; errno 0 is an acknowledgement.

    The words come with NETLINK_EXT_ACK; with NETLINK_CAP_ACK the request's payload is not sent back.
    """
    if len(message.payload) < 4:
        raise WireError(f"netlink error message of {len(message.payload)} bytes")
    number = -int.from_bytes(message.payload[:4], byteorder, signed=True)
    if not message.flags & F_ACK_TLVS:
        return number, ""
    offset = 4
    if message.kind == ERROR:
        offset = 20
        if not message.flags & F_CAPPED:
            offset = 4 + ((int.from_bytes(message.payload[4:8], byteorder) + 3) & ~3)
    try:
        return number, get_text(attributes(message.payload, offset), 1)
    except WireError:
        return number, ""  # the errno is what counts; a strange text must not hide it
