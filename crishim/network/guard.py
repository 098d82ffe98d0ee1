"""The table that lets a pod's link send only under the pod's own hardware and IP addresses; pure.

```
table bridge crishim-<bridge>
  own4, own6    link . hardware address . IP address: what each pod may call its own
  ports         prerouting -300, before the bridge learns or forwards anything
    of another port of a bridge         accept
    IPv4         source in own4         accept
    ARP          sender in own4, also with the hardware address of the frame    accept
    IPv6         a router's or redirect message; a neighbour's address that is not in own6: drop; source in own6: accept
    all else                            drop
```

So a pod cannot take a neighbour's or the gateway's traffic (ARP and ND spoofing, rogue routers), speak in another's
name (IP spoofing), or make the bridge send another's frames to it (MAC spoofing). What is neither ARP nor IP goes too:
stacked VLAN tags and LLC hide both from such rules, and receivers unwrap them (CVE-2021-27853 and its siblings). An
element names its link, so one that outlives its link lets nobody do anything.

`own6` has the link-local address that the kernel makes of the hardware address (RFC 4291, appendix A), and `::`, from
which a host asks whether an address is taken. Fragments of ND are dropped by every receiver (RFC 6980).
Out of scope: what pods send to the rest of the world (`firewall`), limits on how much.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crishim.linux.netlink import wire
from crishim.linux.netlink.link import parse_mac
from crishim.linux.nft import expressions as e
from crishim.linux.nft import messages as m

_PRIORITY = -300
_HARDWARE, _ADDRESS = 4, 6  # registers: the link's name takes four, a padded hardware address two
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD  # linux/if_ether.h
_ICMPV6 = 58
_ROUTER, _SOLICITATION, _ADVERTISEMENT, _REDIRECT = 134, 135, 136, 137  # RFC 4861
_ANY6 = ipaddress.IPv6Address(0).packed

SETS = {"own4": m.TYPE_IPV4, "own6": m.TYPE_IPV6}


@dataclass(frozen=True, slots=True)
class Sender:
    """What one pod's link may send as: its hardware address and its IP addresses."""

    link: str
    mac: str
    addresses: tuple[str, ...]


def table(name: str, bridge: str, prefix: str, senders: Iterable[Sender]) -> list[wire.Request]:
    """Return the transaction that makes the table anew; links whose name begins with `prefix` are the pods'."""
    comment = f"crishim instance of bridge {bridge}"
    requests = [
        m.add_table(name, family=m.BRIDGE),
        m.delete_table(name, family=m.BRIDGE),
        m.add_table(name, comment, family=m.BRIDGE),
    ]
    for number, (set_name, address) in enumerate(SETS.items(), start=1):
        key = [m.TYPE_INTERFACE, m.TYPE_ETHER, address]
        requests.append(m.add_set(name, set_name, number, key, family=m.BRIDGE))
    requests.append(m.add_chain(name, "ports", kind="filter", hook=m.PREROUTING, priority=_PRIORITY, family=m.BRIDGE))
    requests += [m.add_rule(name, "ports", rule, family=m.BRIDGE) for rule in _rules(prefix)]
    return requests + admit(name, senders)


def admit(name: str, senders: Iterable[Sender]) -> list[wire.Request]:
    """Return the changes that let pods send; those that may already are fine."""
    found = elements(senders).items()
    return [
        request
        for set_name, items in found
        for request in m.add_elements(name, set_name, items, exclusive=False, family=m.BRIDGE)
    ]


def dismiss(name: str, senders: Iterable[Sender]) -> list[wire.Request]:
    """Return the changes that take back what `admit` made."""
    found = elements(senders).items()
    return [
        request for set_name, items in found for request in m.delete_elements(name, set_name, items, family=m.BRIDGE)
    ]


def elements(senders: Iterable[Sender]) -> dict[str, list[m.Element]]:
    """Return what stands in the sets for these pods, by the sets' names."""
    found: dict[str, list[m.Element]] = {}
    for sender in senders:
        mac = parse_mac(sender.mac)
        start = e.interface(sender.link) + mac.ljust(8, b"\0")
        own = [ipaddress.ip_address(address).packed for address in sender.addresses]
        for address in (*own, _link_local(mac), _ANY6):
            found.setdefault("own4" if len(address) == 4 else "own6", []).append(m.Element(start + address))
    return found


def _link_local(mac: bytes) -> bytes:
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _rules(prefix: str) -> list[list[bytes]]:
    link, from_mac = e.load_meta(e.META_IIFNAME), e.load_payload(e.LINK_HEADER, 6, 6, _HARDWARE)
    accept, drop = e.verdict(e.ACCEPT), e.verdict(e.DROP)
    arp, ipv4, ipv6 = _protocol(_ARP), _protocol(_IPV4), _protocol(_IPV6)
    arp_mac, arp_ip = _load(8, 6, _HARDWARE), _load(14, 4)
    is_taken = [link, from_mac, e.load_payload(e.TRANSPORT_HEADER, 8, 16, _ADDRESS), e.find("own6", 0, absent=True)]
    from_nowhere = [_load(8, 16), e.equal(_ANY6, _ADDRESS)]
    return [
        [link, e.differ(prefix.encode()), accept],
        [*ipv4, link, from_mac, _load(12, 4), e.find("own4", 0), accept],
        [*arp, link, arp_mac, arp_ip, e.find("own4", 0, absent=True), drop],
        [*arp, link, from_mac, arp_ip, e.find("own4", 0), accept],
        [*ipv6, *_icmpv6(_ROUTER), drop],
        [*ipv6, *_icmpv6(_REDIRECT), drop],
        [*ipv6, *_icmpv6(_ADVERTISEMENT), *is_taken, drop],
        [*ipv6, *from_nowhere, *_icmpv6(_SOLICITATION), *is_taken, drop],
        # loading the protocol ends the rule where the headers are such that the rules above could not read them
        [*ipv6, e.load_meta(e.META_L4PROTO), link, from_mac, _load(8, 16), e.find("own6", 0), accept],
        [drop],
    ]


def _load(offset: int, length: int, register: int = _ADDRESS) -> bytes:
    return e.load_payload(e.NETWORK_HEADER, offset, length, register)


def _protocol(number: int) -> Sequence[bytes]:
    return e.load_meta(e.META_PROTOCOL), e.equal(number.to_bytes(2, "big"))


def _icmpv6(kind: int) -> Sequence[bytes]:
    is_icmp = e.load_meta(e.META_L4PROTO), e.equal(bytes((_ICMPV6,)))
    return *is_icmp, e.load_payload(e.TRANSPORT_HEADER, 0, 1), e.equal(bytes((kind,)))
