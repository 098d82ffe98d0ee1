"""What stands in a pod's network namespace right now: its interfaces with their addresses, and its routes.

Works for every kind of network, since it asks the kernel and not the books. Blocking; for people who look, never on a
pod's way. Out of scope: published ports (they stand on the host). Invariant: a pod that makes thousands of links or
routes gets a cut list, not a huge answer.
"""

import socket
from dataclasses import dataclass

from crishim.linux.netlink import address as addresses
from crishim.linux.netlink import link as links
from crishim.linux.netlink import namespace

MOST = 256
"""Interfaces, addresses of one interface, and routes that are shown."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One link of the pod; addresses are like `10.1.0.2/16`."""

    name: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PodRoute:
    """One unicast route of the main table; `gateway` is "" for a direct one."""

    destination: str
    gateway: str
    interface: str


@dataclass(frozen=True, slots=True)
class Inside:
    """The namespace's interfaces, by index, and its routes of both families."""

    interfaces: tuple[Interface, ...]
    routes: tuple[PodRoute, ...]


def look_inside(path: str) -> Inside:
    """Look into the network namespace that is pinned at `path`.

    Raises:
        KernelError: there is none, or the kernel refuses.
    """
    with namespace.connect(path) as route:
        found = sorted((links.parse(m.payload) for m in route.dump(links.list_all())), key=lambda link: link.index)
        given = [addresses.parse_address(m.payload) for m in route.dump(addresses.list_addresses())]
        routes = [
            parsed
            for family in (socket.AF_INET, socket.AF_INET6)
            for m in route.dump(addresses.list_routes(family))
            if (parsed := addresses.parse_route(m.payload)) is not None
        ]
    names = {link.index: link.name for link in found}
    texts: dict[int, list[str]] = {}
    for item in given:
        texts.setdefault(item.index, []).append(f"{item.address}/{item.prefix}")
    return Inside(
        tuple(
            Interface(
                link.name, link.mac, link.mtu, bool(link.flags & links.UP), tuple(texts.get(link.index, ())[:MOST])
            )
            for link in found[:MOST]
        ),
        tuple(PodRoute(item.destination, item.gateway, names.get(item.index, "")) for item in routes[:MOST]),
    )
