"""nf_tables messages that ask what is there: the ruleset's generation, chains of all tables, a table's rules; pure.

Out of scope: elements of maps (`messages`), what rules mean. Invariant: asking changes nothing, and needs no table.
"""

import struct
from dataclasses import dataclass

from crishim.linux.netlink import wire
from crishim.linux.nft.expressions import META_IIFNAME, META_OIFNAME

_SUBSYSTEM = 10 << 8
_GET_CHAIN = _SUBSYSTEM | 4
_GET_RULE = _SUBSYSTEM | 7
_GET_GENERATION = _SUBSYSTEM | 16
_HEADER = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource
_BE32 = struct.Struct(">I")
_SIGNED = struct.Struct(">i")
_ALL = 0
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # linux/netfilter.h, as nft names them

FORWARD = 2
"""Hook number of forwarded packets (NF_INET_FORWARD)."""
DROP, ACCEPT = 0, 1


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; only a base chain has a hook, and `hook` is -1 for others. `policy` is DROP or ACCEPT."""

    family: str
    table: str
    name: str
    hook: int = -1
    priority: int = 0
    policy: int = ACCEPT
    kind: str = ""


def get_generation() -> wire.Request:
    """Ask for the ruleset's generation, a number that every transaction of anyone raises."""
    return wire.Request(_GET_GENERATION, 0, _HEADER.pack(_ALL, 0, 0), "look up the generation of the nftables ruleset")


def list_chains() -> wire.Request:
    """Ask for all chains of all families (a dump)."""
    return wire.Request(_GET_CHAIN, 0, _HEADER.pack(_ALL, 0, 0), "list nftables chains")


def list_rules(table: str, family: str = "inet", chain: str = "") -> wire.Request:
    """Ask for all rules of a table, or of one chain of it (a dump); none if there is no such table."""
    number = next(number for number, name in _FAMILIES.items() if name == family)
    payload = _HEADER.pack(number, 0, 0) + wire.text(1, table) + (wire.text(2, chain) if chain else b"")
    return wire.Request(_GET_RULE, 0, payload, f"list rules of nftables table {family} {table}")


def parse_generation(payload: bytes) -> int:
    """Return the generation."""
    return _number(wire.attributes(payload, _HEADER.size), 1)


def parse_chain(payload: bytes) -> Chain:
    """Return the chain that one message of a dump describes."""
    values = wire.attributes(payload, _HEADER.size)
    family = _FAMILIES.get(payload[0], str(payload[0]))
    table, name = wire.get_text(values, 1), wire.get_text(values, 3)
    if 4 not in values:
        return Chain(family, table, name)
    hook = wire.attributes(values[4])
    priority = _SIGNED.unpack(hook[2])[0] if len(hook.get(2, b"")) == 4 else 0
    policy = _number(values, 5) if 5 in values else ACCEPT
    return Chain(family, table, name, _number(hook, 1), priority, policy, wire.get_text(values, 7))


def accepted_interface(payload: bytes) -> tuple[str, str]:
    """Return what a rule accepts, whatever else a packet is: ("in" or "out", interface), or ("", "") if it is other.

    An interface that is given by the beginning of its name comes without the `*`.
    """
    way = name = ""
    for expression in wire.elements(wire.attributes(payload, _HEADER.size).get(4, b"")):
        fields = wire.attributes(expression)
        kind, data = wire.get_text(fields, 1), wire.attributes(fields.get(2, b""))
        if kind == "meta" and not way:
            way = {META_IIFNAME: "in", META_OIFNAME: "out"}.get(_number(data, 2), "")
        elif kind == "cmp" and way and not name and not _number(data, 2):
            name = wire.get_text(wire.attributes(data.get(3, b"")), 1)
        elif kind == "immediate":
            verdict = wire.attributes(wire.attributes(data.get(2, b"")).get(2, b""))
            if way and name and _number(verdict, 1) == ACCEPT:
                return way, name
        elif kind != "counter":
            break
    return "", ""


def _number(values: dict[int, bytes], kind: int) -> int:
    value = values.get(kind, b"")
    return int(_BE32.unpack(value)[0]) if len(value) == 4 else 0
