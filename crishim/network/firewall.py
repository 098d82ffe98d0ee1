"""The instance's nftables table: what stands in it, and how a published port becomes a map element; pure.

```
table inet crishim-<bridge>
  raw         prerouting -300  to or from 127.0.0.0/8, but not on lo: drop
  prerouting  nat -100  ┐ destination . protocol . port in given4/given6: DNAT
  output      nat -100  ┘ local destination, protocol . port in any4/any6: DNAT
  postrouting nat  100  pod → outside: masquerade; host's 127.0.0.1 → pod, pod → pod by a published port: masquerade
```

`raw` stands before route_localnet is set on the bridge: neither a pod nor a machine beside the host reaches what is on
the host's loopback, nor pretends to be it. A port that is published there would be reached without it, as DNAT comes
before the kernel's own look at such addresses. A VRF's device counts as lo, as it does for the kernel's check of ::1.

A pod's source address stays as it is for outside → host port. Masquerading what went through a published port and comes
back out of the bridge makes the answer take the same way back: a pod that calls itself, or its neighbour, by the host's
address. What another program translated (kube-proxy's services) keeps its source, since that program decides. So a
connection is known as ours by where its first packet went: to a key of given4/6, or to one of any4/6 at an address that
was the host's own when a pod asked for it, which `prerouting` notes in local4/6. The maps' keys stand in sets as well,
one a protocol: nft has no words for a look into a map that only asks if a key is there, and would show another rule.

`::1` is left out: the kernel would not route it to a pod, and a refused connection makes `localhost` try 127.0.0.1 at
once. Out of scope: other tables' policies (a FORWARD policy of drop is the host's).
"""

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from crishim.linux.netlink import wire
from crishim.linux.nft import expressions as e
from crishim.linux.nft import messages as m
from crishim.network.plan import PROTOCOLS, PortRule, Subnet
from crishim.network.ports import Owner

_DSTNAT = -100
_SRCNAT = 100
_RAW = -300
_NFPROTO = {4: m.IPV4, 6: m.IPV6}
_ADDRESS_TYPE = {4: m.TYPE_IPV4, 6: m.TYPE_IPV6}
_SOURCE_OFFSET = {4: 12, 6: 8}
_DESTINATION_OFFSET = {4: 16, 6: 24}
_ADDRESS_LENGTH = {4: 4, 6: 16}
_PORT_OFFSET = 2
_LOOPBACK6 = ipaddress.IPv6Address(1).packed

_CT_DESTINATION = {4: e.CT_DESTINATION4, 6: e.CT_DESTINATION6}
_MOST_LOCAL = 1 << 16  # addresses of the host; whole prefixes may be local (ip-route(8), type local)

_KEY = struct.Struct(">B3xH2x")  # protocol and port, each padded
_NAMES = {number: protocol.word for protocol, number in PROTOCOLS.items()}

MAPS = ("given4", "any4", "given6", "any6")


def table(
    name: str, bridge: str, subnets: Sequence[Subnet], ports: Iterable[tuple[Owner, PortRule]]
) -> list[wire.Request]:
    """Return the transaction that makes the table anew, with the elements for `ports`.

    Creating before deleting makes the deletion safe on a host that has none; all of it takes place at once.
    """
    requests = [m.add_table(name), m.delete_table(name), m.add_table(name, f"crishim instance of bridge {bridge}")]
    for number, map_name in enumerate(MAPS, start=1):
        version = int(map_name[-1])
        key = [m.TYPE_PROTOCOL, m.TYPE_PORT]
        if map_name.startswith("given"):
            key.insert(0, _ADDRESS_TYPE[version])
        requests.append(m.add_map(name, map_name, number, key, [_ADDRESS_TYPE[version], m.TYPE_PORT]))
    keys = [(map_name, protocol) for map_name in MAPS for protocol in PROTOCOLS]
    for number, (map_name, protocol) in enumerate(keys, start=len(MAPS) + 1):
        given = [_ADDRESS_TYPE[int(map_name[-1])], m.TYPE_PORT]
        key = given if map_name.startswith("given") else [m.TYPE_LONE_PORT]
        requests.append(m.add_set(name, f"{map_name}-{protocol.word}", number, key))
    for number, version in enumerate((4, 6), start=len(MAPS) + len(keys) + 1):
        requests.append(m.add_set(name, f"local{version}", number, [_ADDRESS_TYPE[version]], most=_MOST_LOCAL))
    requests += [
        m.add_chain(name, "raw", kind="filter", hook=m.PREROUTING, priority=_RAW),
        m.add_chain(name, "prerouting", kind="nat", hook=m.PREROUTING, priority=_DSTNAT),
        m.add_chain(name, "output", kind="nat", hook=m.OUTPUT, priority=_DSTNAT),
        m.add_chain(name, "postrouting", kind="nat", hook=m.POSTROUTING, priority=_SRCNAT),
    ]
    requests += [m.add_rule(name, "raw", rule) for rule in _raw_rules()]
    requests += [m.add_rule(name, "prerouting", rule) for rule in _note_rules(bridge)]
    for chain in ("prerouting", "output"):
        requests += [m.add_rule(name, chain, rule) for rule in _dnat_rules()]
    requests += [m.add_rule(name, "postrouting", rule) for rule in _masquerade_rules(bridge, subnets)]
    for owner, rule in ports:
        requests += publish(name, owner, [rule])
    return requests


def publish(name: str, owner: Owner, rules: Iterable[PortRule]) -> list[wire.Request]:
    """Return the changes that publish a pod's ports."""
    found = elements(rules, owner.comment).items()
    return [request for set_name, items in found for request in m.add_elements(name, set_name, items)]


def unpublish(name: str, entries: Mapping[str, Sequence[m.Element]]) -> list[wire.Request]:
    """Return the changes that take these elements back."""
    return [
        request
        for set_name, items in entries.items()
        for request in m.delete_elements(name, set_name, [m.Element(item.key) for item in items])
    ]


def elements(rules: Iterable[PortRule], comment: str = "") -> dict[str, list[m.Element]]:
    """Return what stands in the maps and sets for published ports, by their names."""
    found: dict[str, list[m.Element]] = {}
    for rule in rules:
        item = _element(rule, comment)
        map_name = f"{'given' if rule.host_ip else 'any'}{rule.version}"
        found.setdefault(map_name, []).append(item)
        address, port = item.key[: -_KEY.size], rule.host_port.to_bytes(2, "big")
        key = address + port + bytes(2) if rule.host_ip else port
        found.setdefault(f"{map_name}-{_NAMES[rule.protocol]}", []).append(m.Element(key))
    return found


def parse(map_name: str, element: m.Element) -> tuple[Owner, PortRule]:
    """Return the owner and port that an element of one of our maps stands for."""
    version = int(map_name[-1])
    length = _ADDRESS_LENGTH[version]
    key, host_ip = element.key, ""
    if map_name.startswith("given"):
        host_ip, key = str(ipaddress.ip_address(key[:length])), key[length:]
    protocol, host_port = _KEY.unpack(key)
    address = str(ipaddress.ip_address(element.data[:length]))
    (container_port,) = struct.unpack(">H2x", element.data[length:])
    return Owner.parse(element.comment), PortRule(version, protocol, host_ip, host_port, address, container_port)


def _element(rule: PortRule, comment: str = "") -> m.Element:
    family = socket.AF_INET if rule.version == 4 else socket.AF_INET6
    key = _KEY.pack(rule.protocol, rule.host_port)
    if rule.host_ip:
        key = socket.inet_pton(family, rule.host_ip) + key
    return m.Element(key, socket.inet_pton(family, rule.address) + struct.pack(">H2x", rule.container_port), comment)


def _raw_rules() -> list[list[bytes]]:
    elsewhere = [e.load_meta(e.META_IIFNAME), e.differ(e.interface("lo")), *_of_version(4)]
    return [
        [e.load_meta(e.META_IIFKIND), e.equal(e.interface("vrf")), e.verdict(e.ACCEPT)],
        *(
            [*elsewhere, e.load_payload(e.NETWORK_HEADER, offset, 1), e.equal(b"\x7f"), e.verdict(e.DROP)]
            for offset in (_DESTINATION_OFFSET[4], _SOURCE_OFFSET[4])
        ),
    ]


def _note_rules(bridge: str) -> list[list[bytes]]:
    """Note the host's addresses that pods ask for: postrouting cannot ask the routing tables about one any more."""
    from_pods = [e.load_meta(e.META_IIFNAME), e.equal(e.interface(bridge))]
    return [
        [*from_pods, *_of_version(version), *e.local_destination(), _load_destination(version), e.remember(name, 0)]
        for version, name in ((4, "local4"), (6, "local6"))
    ]


def _dnat_rules() -> list[list[bytes]]:
    rules = []
    for version in (4, 6):
        length = _ADDRESS_LENGTH[version]
        words = length // 4
        destination = _load_destination(version)
        nat = e.dnat(_NFPROTO[version], 0, words)
        given = [destination, *_load_port(words), e.lookup(f"given{version}", 0, 0), nat]
        local = [*e.local_destination(), *_load_port(0), e.lookup(f"any{version}", 0, 0), nat]
        if version == 6:
            local = [destination, e.differ(_LOOPBACK6), *local]
        rules += [[*_of_version(version), *given], [*_of_version(version), *local]]
    return rules


def _masquerade_rules(bridge: str, subnets: Sequence[Subnet]) -> list[list[bytes]]:
    to_pods = [e.load_meta(e.META_OIFNAME), e.equal(e.interface(bridge))]
    loopback = e.load_payload(e.NETWORK_HEADER, _SOURCE_OFFSET[4], 1)
    rules = [[*_of_version(4), loopback, e.equal(b"\x7f"), *to_pods, e.masquerade()]]
    for subnet in subnets:
        source = [*_of_version(subnet.version), *_within(subnet, _SOURCE_OFFSET[subnet.version], e.equal)]
        ours = [[*source, *to_pods, *by] for by in _by_published_port(subnet.version)]
        outside = _within(subnet, _DESTINATION_OFFSET[subnet.version], e.differ)
        leaving = [e.load_meta(e.META_OIFNAME), e.differ(e.interface(bridge))]
        rules += [
            *([*rule, e.masquerade()] for rule in ours),
            [*source, *outside, *leaving, e.masquerade(e.MASQUERADE_RANDOM)],
        ]
    return rules


def _by_published_port(version: int) -> Iterator[list[bytes]]:
    """Go on only for a connection that a rule of ours translated: by an address that was given, by any local one."""
    words = _ADDRESS_LENGTH[version] // 4
    translated = [e.load_ct_status(), e.mask(struct.pack("=I", e.STATUS_DNAT)), e.differ(bytes(4))]
    asked = e.load_ct_original(_CT_DESTINATION[version])
    given = [asked, e.load_ct_original(e.CT_PORT, words)]
    local = [asked, e.find(f"local{version}", 0), e.load_ct_original(e.CT_PORT)]
    for protocol, number in PROTOCOLS.items():
        start = [e.load_meta(e.META_L4PROTO), e.equal(bytes((number,))), *translated]
        yield [*start, *given, e.find(f"given{version}-{protocol.word}", 0)]
        yield [*start, *local, e.find(f"any{version}-{protocol.word}", 0)]


def _of_version(version: int) -> list[bytes]:
    return [e.load_meta(e.META_NFPROTO), e.equal(bytes((_NFPROTO[version],)))]


def _load_destination(version: int) -> bytes:
    return e.load_payload(e.NETWORK_HEADER, _DESTINATION_OFFSET[version], _ADDRESS_LENGTH[version])


def _load_port(register: int) -> list[bytes]:
    return [
        e.load_meta(e.META_L4PROTO, register),
        e.load_payload(e.TRANSPORT_HEADER, _PORT_OFFSET, 2, register + 1),
    ]


def _within(subnet: Subnet, offset: int, compare: Callable[[bytes], bytes]) -> list[bytes]:
    load = e.load_payload(e.NETWORK_HEADER, offset, _ADDRESS_LENGTH[subnet.version])
    return [load, e.mask(subnet.network.netmask.packed), compare(subnet.network.network_address.packed)]
