"""ctnetlink: find and forget tracked UDP flows of one port (linux/netfilter/nfnetlink_conntrack.h); pure.

A UDP flow is never closed: as long as its client keeps sending from one port, its tracked entry, and the NAT in it,
stays. So a change of a published UDP port must drop the flows that were tracked under the old rules. The kernel
filters the list (CTA_FILTER, Linux >= 5.8), each flow is then deleted by its own tuple; one call that does both is
newer than the oldest kernel that we serve.
"""

import socket
import struct

from crishim.linux.netlink import wire

_SUBSYSTEM = 1 << 8
_GET = _SUBSYSTEM | 1
_DELETE = _SUBSYSTEM | 2
_HEADER = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource
_TUPLE_ORIG = 1
_TUPLE_IP = 1
_TUPLE_PROTO = 2
_V4_DST = 2
_V6_DST = 4
_PROTO_NUM = 1
_PROTO_DST_PORT = 3
_ID = 12
_ZONE = 18
_FILTER = 25
_FILTER_ORIG_FLAGS = 1
_FILTER_REPLY_FLAGS = 2
# Bits of CTA_FILTER_*_FLAGS: which parts of the tuple must match
_MATCH_IP_DST = 1 << 1
_MATCH_PROTO_NUM = 1 << 3
_MATCH_PROTO_DST_PORT = 1 << 5


def list_udp(family: int, port: int = 0, address: bytes = b"") -> wire.Request:
    """Ask for the UDP flows whose first packet went to `port`, and to `address` (network order), if given (a dump).

    The kernel walks its whole table for it: more than ten milliseconds where that is large, so ask once for many ports.
    """
    flags = _MATCH_PROTO_NUM | (_MATCH_PROTO_DST_PORT if port else 0)
    inner = b""
    if address:
        flags |= _MATCH_IP_DST
        inner = wire.nested(_TUPLE_IP, wire.attribute(_V4_DST if family == socket.AF_INET else _V6_DST, address))
    proto = wire.nested(
        _TUPLE_PROTO,
        wire.u8(_PROTO_NUM, socket.IPPROTO_UDP),
        wire.attribute(_PROTO_DST_PORT, struct.pack(">H", port)),
    )
    payload = b"".join(
        (
            _HEADER.pack(family, 0, 0),
            wire.nested(_TUPLE_ORIG, inner, proto),
            wire.nested(_FILTER, wire.u32(_FILTER_ORIG_FLAGS, flags), wire.u32(_FILTER_REPLY_FLAGS, 0)),
        )
    )
    return wire.Request(_GET, 0, payload, f"list tracked UDP flows to port {port or 'any'}")


def destination(flow: bytes) -> tuple[bytes, int]:
    """Return the address (network order) and port that a flow's first packet went to."""
    original = wire.attributes(wire.attributes(flow, _HEADER.size).get(_TUPLE_ORIG, b""))
    addresses = wire.attributes(original.get(_TUPLE_IP, b""))
    port = wire.attributes(original.get(_TUPLE_PROTO, b"")).get(_PROTO_DST_PORT, b"\0\0")
    return addresses.get(_V4_DST if flow[0] == socket.AF_INET else _V6_DST, b""), int.from_bytes(port, "big")


def delete(flow: bytes) -> wire.Request:
    """Forget one flow; `flow` is the payload of a message of the list. Its id guards against a newer equal one."""
    values = wire.attributes(flow, _HEADER.size)
    payload = _HEADER.pack(flow[0], 0, 0)
    payload += b"".join(
        wire.attribute(kind | (wire.NESTED if kind == _TUPLE_ORIG else 0), values[kind])
        for kind in (_TUPLE_ORIG, _ZONE, _ID)
        if kind in values
    )
    return wire.Request(_DELETE, 0, payload, "forget a tracked UDP flow")
