"""Make or adopt the instance's bridge, its addresses and its switches; blocking, over a given connection.

Invariant: `ensure_bridge` may run at any time, on a host that has all, part or nothing of it; it changes only the
link of the instance's own name, and refuses a name or range that is someone else's.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from crishim.errors import FailedPreconditionError, KernelError
from crishim.linux.netlink import address as addresses
from crishim.linux.netlink import link as links
from crishim.linux.netlink.connection import Connection
from crishim.network import sysctl
from crishim.network.plan import Subnet, hardware_address, is_link_name
from crishim.network.settings import ALIAS_PREFIX, NetworkSettings

_DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge as it stands: its index, the MTU for pods, and what had to be changed on the host."""

    index: int
    mtu: int
    changes: tuple[str, ...] = ()


def ensure_bridge(route: Connection, settings: NetworkSettings, subnets: Sequence[Subnet]) -> Bridge:
    """Make what is missing of the bridge and return it.

    Raises:
        FailedPreconditionError: the name or a subnet is used by another link or instance; the message names it.
        KernelError: the kernel refuses.
    """
    found = {link.index: link for link in list_links(route)}
    existing = next((link for link in found.values() if link.name == settings.bridge), None)
    if existing is not None and existing.kind != "bridge":
        raise FailedPreconditionError(
            f"link {settings.bridge} exists and is no bridge; choose another name with --bridge"
        )
    _refuse_owner(existing, settings)
    given = [addresses.parse_address(message.payload) for message in route.dump(addresses.list_addresses())]
    index = existing.index if existing is not None else 0
    _refuse_overlap(subnets, [item for item in given if item.index != index], found)
    mtu = settings.mtu or default_mtu(route, found)
    changes = []
    if existing is None:
        mac = hardware_address(subnets[0].gateway)
        make = [links.add_bridge(settings.bridge, mac=mac, mtu=mtu)]
        route.request([*make, links.set_alias(settings.bridge, settings.alias)] if settings.alias else make)
        index = look_up(route, settings.bridge).index
        changes.append(f"bridge {settings.bridge}")
    elif existing.mtu != mtu:
        route.request([links.set_mtu(index, settings.bridge, mtu)])
    if existing is not None and settings.alias and not existing.alias:
        route.request([links.set_alias(settings.bridge, settings.alias)])
    changes += _set_switches(settings.bridge, subnets)
    if existing is None or not existing.flags & links.UP:
        route.request([links.set_up(index, settings.bridge)])
    _set_addresses(route, index, subnets, [item for item in given if item.index == index])
    return Bridge(index, mtu, tuple(changes))


def allow_loopback(bridge: str) -> None:
    """Let connections from the host's 127.0.0.1 to a published port be routed to the pods (ip-sysctl: route_localnet).

    Only after the table's rule that drops what pods send to 127.0.0.0/8 is in place.
    """
    sysctl.set_switch(f"ipv4/conf/{bridge}/route_localnet", "1")


def list_links(route: Connection) -> list[links.Link]:
    """Return all links of the namespace."""
    return [links.parse(message.payload) for message in route.dump(links.list_all())]


def pod_links(found: Iterable[links.Link], prefix: str) -> frozenset[str]:
    """Return the names of the instance's pod links: veths with a name of ours, ports of its bridge or of none.

    A link is of no bridge if another program took the bridge away: it is a pod's all the same.
    """
    return frozenset(link.name for link in found if link.kind == "veth" and is_link_name(link.name, prefix))


def rejoin(route: Connection, bridge: Bridge, found: Iterable[links.Link], names: Collection[str]) -> list[str]:
    """Make pods' links ports of the bridge again, those that are not or are down; return their names."""
    joined = []
    for link in found:
        if link.name not in names or (link.master == bridge.index and link.flags & links.UP):
            continue
        try:
            route.request([links.set_master(link.name, bridge.index), links.set_hairpin(link.name)])
            route.request([links.set_up(link.index, link.name)])
        except KernelError as error:
            if error.errno != errno.ENODEV:  # its pod may end while we look
                raise
        else:
            joined.append(link.name)
    return joined


def is_whole(route: Connection, link: links.Link, subnets: Sequence[Subnet]) -> bool:
    """Tell whether a bridge that was made is still as it was made: up, with the gateways' addresses, switches on."""
    given = {
        (item.address, item.prefix)
        for item in (addresses.parse_address(message.payload) for message in route.dump(addresses.list_addresses()))
        if item.index == link.index
    }
    return (
        bool(link.flags & links.UP)
        and all((subnet.gateway, subnet.prefix) in given for subnet in subnets)
        and sysctl.read(f"ipv4/conf/{link.name}/route_localnet") == "1"
        and all(sysctl.forwards(subnet.version) for subnet in subnets)
    )


def look_up(connection: Connection, name: str) -> links.Link:
    """Return one link by name; KernelError (ENODEV) if there is none."""
    answers = connection.request([links.get(name)])
    return links.parse(answers[0].payload)


def default_mtu(route: Connection, found: dict[int, links.Link]) -> int:
    """Return the smallest MTU of the links that default routes lead to, 1500 if there is no such route."""
    mtus = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in route.dump(addresses.list_routes(family)):
            link = found.get(addresses.default_route_link(message.payload))
            if link is not None:
                mtus.append(link.mtu)
    return min(mtus, default=_DEFAULT_MTU)


def _refuse_owner(existing: links.Link | None, settings: NetworkSettings) -> None:
    """Two instances with one bridge would remove each other's pods' links: the later one gets no network."""
    if existing is None or not settings.alias or not existing.alias.startswith(ALIAS_PREFIX):
        return
    if existing.alias != settings.alias:
        owner = existing.alias.removeprefix(ALIAS_PREFIX)
        raise FailedPreconditionError(
            f"bridge {settings.bridge} belongs to the instance with root {owner}; choose another name with --bridge,"
            f" or delete it if that instance is gone (ip link delete {settings.bridge})"
        )


def _refuse_overlap(
    subnets: Sequence[Subnet], others: Sequence[addresses.Address], found: dict[int, links.Link]
) -> None:
    for other in others:
        if not other.address:
            continue
        theirs = ipaddress.ip_interface(f"{other.address}/{other.prefix}")
        for subnet in subnets:
            if theirs.version != subnet.version:
                continue
            within = int(theirs.network.network_address) >= int(subnet.network.network_address) and int(
                theirs.network.broadcast_address
            ) <= int(subnet.network.broadcast_address)
            if within or theirs.ip in subnet.network:
                name = found[other.index].name if other.index in found else f"link {other.index}"
                raise FailedPreconditionError(
                    f"subnet {subnet.text} is used by {name} ({theirs}); give this instance another with --subnet"
                )


def _set_switches(bridge: str, subnets: Sequence[Subnet]) -> list[str]:
    changes: list[str] = []
    sysctl.set_switch(f"ipv4/conf/{bridge}/accept_redirects", "0")  # nor tell the host another way to anywhere
    if os.path.isdir("/proc/sys/net/ipv6"):
        sysctl.set_switch(f"ipv6/conf/{bridge}/accept_redirects", "0")
        sysctl.set_switch(f"ipv6/conf/{bridge}/accept_ra", "0")  # no pod may advertise itself as the host's router
        # The link-local address must be usable at once: the host asks for neighbours with it, and until duplicate
        # address detection is through, its first connection to a pod waits two seconds.
        sysctl.set_switch(f"ipv6/conf/{bridge}/accept_dad", "0")
    for subnet in subnets:
        if subnet.version == 6:
            sysctl.set_switch(f"ipv6/conf/{bridge}/disable_ipv6", "0")
        changes += sysctl.enable_forwarding(subnet.version)
    return changes


def _set_addresses(
    route: Connection, index: int, subnets: Sequence[Subnet], present: Sequence[addresses.Address]
) -> None:
    wanted = {(subnet.gateway, subnet.prefix) for subnet in subnets}
    have = {(item.address, item.prefix) for item in present}
    for address, prefix in sorted(wanted - have):
        route.request([addresses.add_address(index, address, prefix)])
    stale = sorted(item for item in have - wanted if not ipaddress.ip_address(item[0]).is_link_local)
    if not stale:
        return
    ports = [links.parse(message.payload) for message in route.dump(links.list_ports(index))]
    if any(port.master == index for port in ports):
        return  # pods of an earlier configuration still have their gateway here
    for address, prefix in stale:
        route.request([addresses.delete_address(index, address, prefix)])
