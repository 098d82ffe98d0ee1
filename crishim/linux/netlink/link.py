"""rtnetlink messages for links: bridges, veth pairs, their ports and states (rtnetlink(7), linux/if_link.h).

Pure: functions return requests and parse answers. Out of scope: addresses and routes (`address`).
"""

import struct
from dataclasses import dataclass

from crishim.linux.netlink import wire

NEWLINK = 16
DELLINK = 17
GETLINK = 18

UP = 0x1
LOOPBACK_INDEX = 1

_INFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = 1
_NAME = 3
_MTU = 4
_MASTER = 10
_LINKINFO = 18
_ALIAS = 20
_NETNS_FD = 28
_EXT_MASK = 29
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_SLAVE_KIND = 4
_INFO_SLAVE_DATA = 5
_PEER = 1  # VETH_INFO_PEER
_BR_MCAST_SNOOPING = 23
_BRPORT_HAIRPIN = 4
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS: a link's counters are most of its message


@dataclass(frozen=True, slots=True)
class Link:
    """One link as the kernel reports it; `kind` is "" for physical ones, `mac` is empty where there is none."""

    index: int
    name: str
    flags: int
    kind: str = ""
    master: int = 0
    mtu: int = 0
    mac: str = ""
    alias: str = ""


def add_bridge(name: str, *, mac: str, mtu: int) -> wire.Request:
    """Create a bridge, down, with a fixed MAC (else it takes the lowest of its ports', and caches go stale).

    Multicast snooping is off: without a querier it may drop neighbour discovery.
    """
    data = wire.nested(_INFO_DATA, wire.u8(_BR_MCAST_SNOOPING, 0))
    payload = b"".join(
        (
            _INFO.pack(0, 0, 0, 0, 0),
            wire.text(_NAME, name),
            wire.attribute(_ADDRESS, parse_mac(mac)),
            wire.u32(_MTU, mtu),
            wire.nested(_LINKINFO, wire.text(_INFO_KIND, "bridge"), data),
        )
    )
    return wire.Request(NEWLINK, wire.F_CREATE | wire.F_EXCL, payload, f"create bridge {name}")


def add_veth(name: str, *, master: int, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int) -> wire.Request:
    """Create a veth pair, `name` up and a port of the bridge `master`, its peer in another namespace.

    The peer cannot come up with its making (ENOTCONN: it has no peer yet).
    """
    peer = b"".join(
        (
            _INFO.pack(0, 0, 0, 0, 0),
            wire.text(_NAME, peer_name),
            wire.attribute(_ADDRESS, parse_mac(peer_mac)),
            wire.u32(_MTU, mtu),
            wire.u32(_NETNS_FD, peer_netns_fd),
        )
    )
    data = wire.nested(_INFO_DATA, wire.nested(_PEER, peer))
    payload = b"".join(
        (
            _INFO.pack(0, 0, 0, UP, UP),
            wire.text(_NAME, name),
            wire.u32(_MTU, mtu),
            wire.u32(_MASTER, master),
            wire.nested(_LINKINFO, wire.text(_INFO_KIND, "veth"), data),
        )
    )
    return wire.Request(NEWLINK, wire.F_CREATE | wire.F_EXCL, payload, f"create link {name}")


def set_hairpin(name: str) -> wire.Request:
    """Let a bridge port send frames back where they came from: a pod reaches itself through a published port."""
    data = wire.nested(_INFO_SLAVE_DATA, wire.u8(_BRPORT_HAIRPIN, 1))
    payload = b"".join(
        (
            _INFO.pack(0, 0, 0, 0, 0),
            wire.text(_NAME, name),
            wire.nested(_LINKINFO, wire.text(_INFO_SLAVE_KIND, "bridge"), data),
        )
    )
    return wire.Request(NEWLINK, 0, payload, f"set hairpin mode of {name}")


def set_master(name: str, bridge: int) -> wire.Request:
    """Make a link a port of the bridge with this index."""
    payload = _INFO.pack(0, 0, 0, 0, 0) + wire.text(_NAME, name) + wire.u32(_MASTER, bridge)
    return wire.Request(NEWLINK, 0, payload, f"make link {name} a bridge port")


def set_alias(name: str, alias: str) -> wire.Request:
    """Write a text of at most 255 bytes beside a link's name (ip-link(8)); the kernel makes nothing of it."""
    payload = _INFO.pack(0, 0, 0, 0, 0) + wire.text(_NAME, name) + wire.attribute(_ALIAS, alias.encode())
    return wire.Request(NEWLINK, 0, payload, f"set the alias of link {name}")


def set_up(index: int, name: str) -> wire.Request:
    """Bring a link up by its index; `name` is for errors."""
    return wire.Request(NEWLINK, 0, _INFO.pack(0, 0, index, UP, UP), f"set link {name} up")


def set_mtu(index: int, name: str, mtu: int) -> wire.Request:
    """Set a link's MTU."""
    payload = _INFO.pack(0, 0, index, 0, 0) + wire.u32(_MTU, mtu)
    return wire.Request(NEWLINK, 0, payload, f"set mtu {mtu} of link {name}")


def delete(name: str) -> wire.Request:
    """Delete a link by name; a veth's peer goes with it."""
    return wire.Request(DELLINK, 0, _INFO.pack(0, 0, 0, 0, 0) + wire.text(_NAME, name), f"delete link {name}")


def get(name: str) -> wire.Request:
    """Ask for one link by name; the answer is one NEWLINK message."""
    payload = _INFO.pack(0, 0, 0, 0, 0) + wire.text(_NAME, name) + wire.u32(_EXT_MASK, _SKIP_STATS)
    return wire.Request(GETLINK, 0, payload, f"look up link {name}")


def list_all() -> wire.Request:
    """Ask for all links (a dump)."""
    return wire.Request(GETLINK, 0, _INFO.pack(0, 0, 0, 0, 0) + wire.u32(_EXT_MASK, _SKIP_STATS), "list links")


def list_ports(bridge: int) -> wire.Request:
    """Ask for the ports of one bridge (a dump; older kernels may answer with all links, so check `master`)."""
    payload = _INFO.pack(0, 0, 0, 0, 0) + wire.u32(_EXT_MASK, _SKIP_STATS) + wire.u32(_MASTER, bridge)
    return wire.Request(GETLINK, 0, payload, "list bridge ports")


def parse(payload: bytes) -> Link:
    """Return the link that a NEWLINK or DELLINK message describes."""
    _, _, index, flags, _ = _INFO.unpack_from(payload)
    values = wire.attributes(payload, _INFO.size)
    info = wire.attributes(values.get(_LINKINFO, b""))
    return Link(
        index=index,
        name=wire.get_text(values, _NAME),
        flags=flags,
        kind=wire.get_text(info, _INFO_KIND),
        master=wire.get_u32(values, _MASTER),
        mtu=wire.get_u32(values, _MTU),
        mac=values.get(_ADDRESS, b"").hex(":"),
        alias=wire.get_text(values, _ALIAS),
    )


def family(payload: bytes) -> int:
    """Return a link message's address family: 0 for the link itself, AF_BRIDGE for its life as a port."""
    return payload[0]


def parse_mac(text: str) -> bytes:
    """Return the six bytes of `aa:bb:cc:dd:ee:ff`."""
    return bytes.fromhex(text.replace(":", ""))
