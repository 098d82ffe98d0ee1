"""rtnetlink messages for addresses and routes of both families (rtnetlink(7)); pure.

Addresses are texts like `10.1.0.2` or `fd00::2`, and come back in the same form.
"""

import socket
import struct
from dataclasses import dataclass

from crishim.linux.netlink import wire

NEWADDR = 20
DELADDR = 21
GETADDR = 22
NEWROUTE = 24
GETROUTE = 26

_ADDRESS_INFO = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE_INFO = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_LOCAL = 2
_ADDRESS = 1
_BROADCAST = 4
_FLAGS = 8
_NODAD = 0x02
_OIF = 4
_GATEWAY = 5
_TABLE_MAIN = 254
_PROTOCOL_BOOT = 3
_SCOPE_UNIVERSE = 0
_UNICAST = 1


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link; `prefix` is its length in bits."""

    index: int
    address: str
    prefix: int


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table; `destination` is `default` or like `10.1.0.0/16`, `gateway` "" if direct."""

    index: int
    destination: str
    gateway: str = ""


def add_address(index: int, address: str, prefix: int) -> wire.Request:
    """Put an address on a link.

    IPv6 addresses skip duplicate address detection: they come from our own leases, and the second that it takes
    would be the longest part of a pod's start.
    """
    return _change(NEWADDR, wire.F_CREATE | wire.F_EXCL, index, address, prefix, f"add address {address}/{prefix}")


def delete_address(index: int, address: str, prefix: int) -> wire.Request:
    """Take an address off a link."""
    return _change(DELADDR, 0, index, address, prefix, f"delete address {address}/{prefix}")


def _change(kind: int, flags: int, index: int, address: str, prefix: int, what: str) -> wire.Request:
    family, raw = pack(address)
    payload = _ADDRESS_INFO.pack(family, prefix, 0, _SCOPE_UNIVERSE, index)
    payload += wire.attribute(_LOCAL, raw) + wire.attribute(_ADDRESS, raw)
    if family == socket.AF_INET6:
        payload += wire.u32(_FLAGS, _NODAD)
    elif prefix < 31:
        mask = (1 << (32 - prefix)) - 1
        payload += wire.attribute(_BROADCAST, (int.from_bytes(raw, "big") | mask).to_bytes(4, "big"))
    return wire.Request(kind, flags, payload, what)


def add_default_route(index: int, gateway: str) -> wire.Request:
    """Route everything through `gateway` on the link `index`."""
    family, raw = pack(gateway)
    payload = _ROUTE_INFO.pack(family, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, _SCOPE_UNIVERSE, _UNICAST, 0)
    payload += wire.attribute(_GATEWAY, raw) + wire.u32(_OIF, index)
    return wire.Request(NEWROUTE, wire.F_CREATE | wire.F_EXCL, payload, f"add default route by {gateway}")


def list_addresses() -> wire.Request:
    """Ask for all addresses of both families (a dump)."""
    return wire.Request(GETADDR, 0, _ADDRESS_INFO.pack(0, 0, 0, 0, 0), "list addresses")


def list_routes(family: int) -> wire.Request:
    """Ask for the routes of one family (a dump)."""
    return wire.Request(GETROUTE, 0, _ROUTE_INFO.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "list routes")


def parse_address(payload: bytes) -> Address:
    """Return the address that a NEWADDR message describes."""
    family, prefix, _, _, index = _ADDRESS_INFO.unpack_from(payload)
    values = wire.attributes(payload, _ADDRESS_INFO.size)
    raw = values.get(_LOCAL) or values.get(_ADDRESS, b"")  # IPv6 has no IFA_LOCAL on broadcast links
    return Address(index, socket.inet_ntop(family, raw) if raw else "", prefix)


def parse_route(payload: bytes) -> Route | None:
    """Return the route that a NEWROUTE message describes, None for one of another table or kind."""
    family, length, _, _, table, _, _, kind, _ = _ROUTE_INFO.unpack_from(payload)
    if table != _TABLE_MAIN or kind != _UNICAST:
        return None
    values = wire.attributes(payload, _ROUTE_INFO.size)
    target, gateway = values.get(_ADDRESS, b""), values.get(_GATEWAY, b"")
    return Route(
        wire.get_u32(values, _OIF),
        f"{socket.inet_ntop(family, target)}/{length}" if target else "default",
        socket.inet_ntop(family, gateway) if gateway else "",
    )


def default_route_link(payload: bytes) -> int:
    """Return the link's index if a NEWROUTE message is a default route of the main table, else 0."""
    _, length, _, _, table, _, _, kind, _ = _ROUTE_INFO.unpack_from(payload)
    if length or table != _TABLE_MAIN or kind != _UNICAST:
        return 0
    return wire.get_u32(wire.attributes(payload, _ROUTE_INFO.size), _OIF)


def pack(address: str) -> tuple[int, bytes]:
    """Return (family, network-order bytes) of an address text."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
