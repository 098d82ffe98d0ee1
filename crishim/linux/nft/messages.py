"""nf_tables messages: tables, chains, rules, maps and their elements (linux/netfilter/nf_tables.h); pure.

What a message holds is what the `nft` program would show: types of map keys are nft's numbers, comments are its user
data. Out of scope: sending (`transaction`), the rules themselves (`expressions`, and `network/firewall`).
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crishim.linux.netlink import wire
from crishim.linux.nft.expressions import data

INET = 1
IPV4 = 2
BRIDGE = 7
IPV6 = 10

PREROUTING = 0
OUTPUT = 3
POSTROUTING = 4

# nft's data types (include/datatype.h of nftables): number and bytes in a register
TYPE_IPV4 = (7, 4)
TYPE_IPV6 = (8, 16)
TYPE_ETHER = (9, 8)
TYPE_PROTOCOL = (12, 4)
TYPE_PORT = (13, 4)
TYPE_LONE_PORT = (13, 2)  # not padded where it is all of a key
TYPE_INTERFACE = (41, 16)

_SUBSYSTEM = 10 << 8
_NEW_TABLE, _DELETE_TABLE = _SUBSYSTEM, _SUBSYSTEM | 2
_GET_TABLE = _SUBSYSTEM | 1
_NEW_CHAIN = _SUBSYSTEM | 3
_NEW_RULE = _SUBSYSTEM | 6
_NEW_SET = _SUBSYSTEM | 9
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM | 12, _SUBSYSTEM | 13, _SUBSYSTEM | 14
_HEADER = struct.Struct(">BBH")
_SET_MAP = 8
_SET_EVAL = 0x20
_TYPE_BITS = 6
_ELEMENTS_PER_MESSAGE = 128
_COMMENT_SIZE = 128  # nft's own limit, with the closing NUL
_ELEMENT_COMMENT = 0
_TABLE_COMMENT = 0


@dataclass(frozen=True, slots=True)
class Element:
    """One entry of a map or set: key and data as registers hold them, and a comment of at most 127 bytes."""

    key: bytes
    data: bytes = b""
    comment: str = ""


def _request(kind: int, flags: int, what: str, *attributes: bytes, family: int) -> wire.Request:
    return wire.Request(kind, flags, _HEADER.pack(family, 0, 0) + b"".join(attributes), what)


def add_table(name: str, comment: str = "", *, family: int = INET) -> wire.Request:
    """Create a table unless it is there."""
    extra = (wire.attribute(6, _user_data(_TABLE_COMMENT, comment)),) if comment else ()
    what = f"create nftables table {name}"
    return _request(_NEW_TABLE, wire.F_CREATE, what, wire.text(1, name), *extra, family=family)


def delete_table(name: str, *, family: int = INET) -> wire.Request:
    """Delete a table with all that is in it."""
    return _request(_DELETE_TABLE, 0, f"delete nftables table {name}", wire.text(1, name), family=family)


def get_table(name: str, *, family: int = INET) -> wire.Request:
    """Ask for one table; an error (ENOENT) if there is none."""
    return _request(_GET_TABLE, 0, f"look up nftables table {name}", wire.text(1, name), family=family)


def add_chain(table: str, name: str, *, kind: str, hook: int, priority: int, family: int = INET) -> wire.Request:
    """Create a base chain of kind `nat` or `filter` at a hook; policy accept."""
    return _request(
        _NEW_CHAIN,
        wire.F_CREATE,
        f"create nftables chain {table} {name}",
        wire.text(1, table),
        wire.text(3, name),
        wire.nested(4, wire.be32(1, hook), wire.be32(2, priority)),
        wire.be32(5, 1),
        wire.text(7, kind),
        family=family,
    )


def add_rule(table: str, chain: str, expressions: Sequence[bytes], *, family: int = INET) -> wire.Request:
    """Append a rule to a chain."""
    return _request(
        _NEW_RULE,
        wire.F_CREATE | wire.F_APPEND,
        f"add a rule to nftables chain {table} {chain}",
        wire.text(1, table),
        wire.text(2, chain),
        wire.nested(4, *expressions),
        family=family,
    )


def add_map(
    table: str, name: str, number: int, key: Sequence[tuple[int, int]], value: Sequence[tuple[int, int]]
) -> wire.Request:
    """Create a map; `number` tells the maps of one transaction apart, key and value are lists of types."""
    key_type, key_length = _concatenate(key)
    data_type, data_length = _concatenate(value)
    return _request(
        _NEW_SET,
        wire.F_CREATE,
        f"create nftables map {table} {name}",
        wire.text(1, table),
        wire.text(2, name),
        wire.be32(3, _SET_MAP),
        wire.be32(4, key_type),
        wire.be32(5, key_length),
        wire.be32(6, data_type),
        wire.be32(7, data_length),
        wire.be32(10, number),
        family=INET,
    )


def add_set(
    table: str, name: str, number: int, key: Sequence[tuple[int, int]], *, most: int = 0, family: int = INET
) -> wire.Request:
    """Create a set; with `most`, one that rules add to, with at most so many elements. `number` as for `add_map`."""
    key_type, key_length = _concatenate(key)
    bound = (wire.nested(9, wire.be32(1, most)),) if most else ()
    return _request(
        _NEW_SET,
        wire.F_CREATE,
        f"create nftables set {table} {name}",
        wire.text(1, table),
        wire.text(2, name),
        wire.be32(3, _SET_EVAL if most else 0),
        wire.be32(4, key_type),
        wire.be32(5, key_length),
        *bound,
        wire.be32(10, number),
        family=family,
    )


def add_elements(
    table: str, name: str, items: Sequence[Element], *, exclusive: bool = True, family: int = INET
) -> Iterator[wire.Request]:
    """Add elements to a map or set; EEXIST if a key is there, unless that is fine."""
    flags = wire.F_CREATE | wire.F_EXCL if exclusive else wire.F_CREATE
    return _elements(_NEW_ELEMENT, flags, f"add elements to nftables set {table} {name}", table, name, items, family)


def delete_elements(table: str, name: str, items: Sequence[Element], *, family: int = INET) -> Iterator[wire.Request]:
    """Delete elements by their keys; ENOENT if one is not there, and then none is deleted."""
    what = f"delete elements of nftables set {table} {name}"
    return _elements(_DELETE_ELEMENT, 0, what, table, name, items, family)


def list_elements(table: str, name: str, *, family: int = INET) -> wire.Request:
    """Ask for the elements of a map or set (a dump)."""
    what = f"list elements of nftables set {table} {name}"
    return _request(_GET_ELEMENT, 0, what, wire.text(1, table), wire.text(2, name), family=family)


def parse_elements(payload: bytes) -> list[Element]:
    """Return the elements that one message of a dump holds."""
    values = wire.attributes(payload, _HEADER.size)
    found = []
    for item in wire.elements(values.get(3, b"")):
        fields = wire.attributes(item)
        key = wire.attributes(fields.get(1, b"")).get(1, b"")
        value = wire.attributes(fields.get(2, b"")).get(1, b"")
        found.append(Element(key, value, _comment(fields.get(6, b""))))
    return found


def _elements(
    kind: int, flags: int, what: str, table: str, name: str, items: Sequence[Element], family: int
) -> Iterator[wire.Request]:
    names = wire.text(1, table), wire.text(2, name)
    for start in range(0, len(items), _ELEMENTS_PER_MESSAGE):
        inner = b"".join(_element(item) for item in items[start : start + _ELEMENTS_PER_MESSAGE])
        yield _request(kind, flags, what, *names, wire.nested(3, inner), family=family)


def _element(item: Element) -> bytes:
    parts = [data(1, item.key)]
    if item.data:
        parts.append(data(2, item.data))
    if item.comment:
        parts.append(wire.attribute(6, _user_data(_ELEMENT_COMMENT, item.comment)))
    return wire.nested(1, *parts)


def _concatenate(types: Sequence[tuple[int, int]]) -> tuple[int, int]:
    number = 0
    for kind, _ in types:
        number = number << _TYPE_BITS | kind
    return number, sum(length for _, length in types)


def _user_data(kind: int, comment: str) -> bytes:
    text = comment.encode()[: _COMMENT_SIZE - 1] + b"\0"
    return bytes((kind, len(text))) + text


def _comment(user_data: bytes) -> str:
    offset = 0
    while offset + 2 <= len(user_data):
        kind, length = user_data[offset], user_data[offset + 1]
        if kind == _ELEMENT_COMMENT:
            return user_data[offset + 2 : offset + 2 + length].split(b"\0", 1)[0].decode("utf-8", "replace")
        offset += 2 + length
    return ""
