"""nf_tables expressions: the small instructions that a rule is made of (linux/netfilter/nf_tables.h); pure.

A rule loads packet fields into 4-byte registers, compares them, looks them up in sets and maps, and ends in NAT or a
verdict. Registers are numbered as NFT_REG32_00 + n, so an address of 4 bytes takes one, of 16 bytes four, and a port
one (padded). Only what `network/` needs is here.
"""

import struct

from crishim.linux.netlink import wire

REGISTER = 8  # NFT_REG32_00

# nft_meta's keys (linux/netfilter/nf_tables.h)
META_PROTOCOL = 1
META_IIFNAME = 6
META_OIFNAME = 7
META_NFPROTO = 15
META_L4PROTO = 16
META_IIFKIND = 26

LINK_HEADER = 0
NETWORK_HEADER = 1
TRANSPORT_HEADER = 2

CT_STATUS = 2
CT_PORT = 12  # NFT_CT_PROTO_DST
CT_DESTINATION4, CT_DESTINATION6 = 20, 22  # NFT_CT_DST_IP, NFT_CT_DST_IP6
STATUS_DNAT = 1 << 5  # IPS_DST_NAT
MASQUERADE_RANDOM = 1 << 4  # NF_NAT_RANGE_PROTO_RANDOM_FULLY

DROP, ACCEPT = 0, 1

_NAME = 1
_DATA = 2
_VALUE = 1
_VERDICT = 2
_VERDICT_CODE = 1
_INTERFACE_NAME_SIZE = 16


def expression(name: str, *attributes: bytes) -> bytes:
    """Return one expression as a list element."""
    return wire.nested(1, wire.text(_NAME, name), wire.nested(_DATA, *attributes))


def data(kind: int, value: bytes) -> bytes:
    """Return an attribute that holds a plain value (struct nft_data)."""
    return wire.nested(kind, wire.attribute(_VALUE, value))


def load_meta(key: int, register: int = 0) -> bytes:
    """Load a fact about the packet."""
    return expression("meta", wire.be32(1, REGISTER + register), wire.be32(2, key))


def load_payload(base: int, offset: int, length: int, register: int = 0) -> bytes:
    """Load `length` bytes at `offset` of the network or transport header."""
    return expression(
        "payload",
        wire.be32(1, REGISTER + register),
        wire.be32(2, base),
        wire.be32(3, offset),
        wire.be32(4, length),
    )


def load_ct_status(register: int = 0) -> bytes:
    """Load the status bits of the packet's tracked connection."""
    return expression("ct", wire.be32(1, REGISTER + register), wire.be32(2, CT_STATUS))


def load_ct_original(key: int, register: int = 0) -> bytes:
    """Load a field of the connection's first packet, as it was before any translation."""
    original = 0  # IP_CT_DIR_ORIGINAL
    return expression("ct", wire.be32(1, REGISTER + register), wire.be32(2, key), wire.u8(3, original))


def equal(value: bytes, register: int = 0) -> bytes:
    """Go on only if the register equals `value`."""
    return _compare(0, value, register)


def differ(value: bytes, register: int = 0) -> bytes:
    """Go on only if the register is not `value`."""
    return _compare(1, value, register)


def _compare(operation: int, value: bytes, register: int) -> bytes:
    return expression("cmp", wire.be32(1, REGISTER + register), wire.be32(2, operation), data(3, value))


def mask(value: bytes, register: int = 0) -> bytes:
    """And the register with `value`."""
    return expression(
        "bitwise",
        wire.be32(1, REGISTER + register),
        wire.be32(2, REGISTER + register),
        wire.be32(3, len(value)),
        data(4, value),
        data(5, bytes(len(value))),
    )


def local_destination() -> list[bytes]:
    """Go on only if the packet's destination is an address of this host (a lookup in the routing tables)."""
    address_type, by_destination, local = 3, 2, 2  # NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR, RTN_LOCAL
    load = expression("fib", wire.be32(1, REGISTER), wire.be32(2, address_type), wire.be32(3, by_destination))
    return [load, equal(struct.pack("=I", local))]


def lookup(name: str, register: int, result: int) -> bytes:
    """Look the registers from `register` on up in a map; go on with the data in `result` only if it is there."""
    return expression("lookup", wire.text(1, name), wire.be32(2, REGISTER + register), wire.be32(3, REGISTER + result))


def find(name: str, register: int, *, absent: bool = False) -> bytes:
    """Go on only if the registers from `register` on are in a set, or only if they are not."""
    inverted = (wire.be32(5, 1),) if absent else ()  # NFT_LOOKUP_F_INV
    return expression("lookup", wire.text(1, name), wire.be32(2, REGISTER + register), *inverted)


def remember(name: str, register: int) -> bytes:
    """Add the registers from `register` on to a set; go on only if they are in it then."""
    add = 0  # NFT_DYNSET_OP_ADD
    return expression("dynset", wire.text(1, name), wire.be32(3, add), wire.be32(4, REGISTER + register))


def dnat(family: int, address: int, port: int) -> bytes:
    """Send the connection to the address and port in these registers; `family` is NFPROTO_IPV4 or _IPV6."""
    return expression(
        "nat", wire.be32(1, 1), wire.be32(2, family), wire.be32(3, REGISTER + address), wire.be32(5, REGISTER + port)
    )


def masquerade(flags: int = 0) -> bytes:
    """Give the connection the outgoing interface's own source address."""
    return expression("masq", wire.be32(1, flags)) if flags else expression("masq")


def verdict(code: int) -> bytes:
    """End with a verdict, like DROP."""
    return expression(
        "immediate", wire.be32(1, 0), wire.nested(2, wire.nested(_VERDICT, wire.be32(_VERDICT_CODE, code)))
    )


def interface(name: str) -> bytes:
    """Return an interface name as registers hold it."""
    return name.encode().ljust(_INTERFACE_NAME_SIZE, b"\0")
