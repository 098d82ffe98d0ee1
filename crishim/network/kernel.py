"""All blocking work of one instance's network: one object, used by one thread at a time.

Out of scope: books and decisions (`embedded`, `plan`). Invariant: a call that takes away succeeds if there was
nothing; what a call made partly, `unpublish` and `delete_link` take back.
"""

import errno
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crishim.errors import FailedPreconditionError, KernelError
from crishim.linux.netlink import address as addresses
from crishim.linux.netlink import conntrack, wire
from crishim.linux.netlink import link as links
from crishim.linux.netlink.connection import NETFILTER, Connection
from crishim.linux.nft import listing, messages, transaction
from crishim.network import firewall, sysctl
from crishim.network.admission import Admission
from crishim.network.bridge import (
    Bridge,
    allow_loopback,
    ensure_bridge,
    is_whole,
    list_links,
    pod_links,
    rejoin,
)
from crishim.network.guard import Sender
from crishim.network.model import PodNetns
from crishim.network.plan import INTERFACE, PROTOCOLS, PodPlan, PortRule, Subnet, link_prefix
from crishim.network.ports import Owner
from crishim.network.settings import NetworkSettings
from crishim.request import Protocol

_ABSENT = {errno.ENOENT, errno.ENODEV, errno.ENXIO}


@dataclass(frozen=True, slots=True)
class HostState:
    """What was found or made at start: the bridge, the pods' links, the published ports."""

    bridge: Bridge
    links: frozenset[str]
    ports: tuple[tuple[Owner, PortRule], ...]


class Kernel:
    """The kernel's side of one instance's network."""

    def __init__(self, settings: NetworkSettings, subnets: Sequence[Subnet]) -> None:
        self._settings = settings
        self._subnets = tuple(subnets)
        self._table = settings.table_name
        self._prefix = link_prefix(settings.bridge)
        self.admission = Admission(settings)
        self._route: Connection | None = None
        self._netfilter: Connection | None = None
        self._bridge: Bridge | None = None
        self._generation: int | None = None  # of the ruleset when the table was last seen to be whole

    def start(self, senders: Sequence[Sender]) -> HostState:
        """Make or adopt bridge, tables and switches; published ports of an earlier daemon stay in force throughout.

        The senders' links become ports of the bridge again, if it was taken away from them.
        """
        self._route = self._route or Connection()
        self._netfilter = self._netfilter or Connection(NETFILTER)
        bridge = ensure_bridge(self._route, self._settings, self._subnets)
        self._bridge = bridge
        ports = tuple(self._load_ports())
        self._build_table(ports)
        self.admission.build(self._netfilter, senders)
        allow_loopback(self._settings.bridge)
        found = list_links(self._route)
        rejoin(self._route, bridge, found, _links_of(senders))
        return HostState(bridge, pod_links(found, self._prefix), ports)

    def use(self, subnets: Sequence[Subnet]) -> Bridge:
        """Serve other subnets from now on, or from `start` on; on failure the old ones stay.

        Pods of a subnet that is in both lists notice nothing; published ports stay in force throughout.
        """
        before, self._subnets = self._subnets, tuple(subnets)
        if self._bridge is None:
            return Bridge(0, 0)
        try:
            self._bridge = ensure_bridge(self._routes(), self._settings, self._subnets)
            self._build_table(tuple(self._load_ports()))
        except BaseException:
            self._subnets = before
            raise
        return self._bridge

    def close(self) -> None:
        """Close the sockets; idempotent."""
        for connection in (self._route, self._netfilter):
            if connection is not None:
                connection.close()
        self._route = self._netfilter = None

    def connect(self, plan: PodPlan, netns: PodNetns, owner: Owner) -> bool:
        """Make a pod's link, addresses, routes and published ports; after a failure the caller takes all back.

        Returns False, and has done nothing, if someone took the tables away: `repair` makes them with this pod in.

        Raises:
            KernelError: names the step.
        """
        admit = [*self.admission.admit(plan.sender), *firewall.publish(self._table, owner, plan.rules)]
        try:
            transaction.commit(self._filters(), admit)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        self.join(plan, netns)
        return True

    def join(self, plan: PodPlan, netns: PodNetns) -> None:
        """Make the link, addresses and routes of a pod that is in the tables; see `connect`."""
        make = links.add_veth(
            plan.link,
            master=self._bridge_index(),
            mtu=plan.mtu,
            peer_name=INTERFACE,
            peer_mac=plan.mac,
            peer_netns_fd=netns.netns_fd,
        )
        self._routes().request([make, links.set_hairpin(plan.link)])
        with Connection(fd=netns.netlink_fd) as inside:
            _configure(inside, plan)
        self._forget_flows(plan.rules)  # those that were tracked without the ports

    def dismiss(self, senders: Sequence[Sender]) -> None:
        """Let pods that are gone send no more: what they left in the table."""
        self.admission.dismiss(self._filters(), senders)

    def unpublish(self, rules: Sequence[PortRule]) -> None:
        """Take ports out of the maps, those that are there, and forget the UDP flows that were tracked with them."""
        if not rules:
            return
        entries = firewall.elements(rules)
        try:
            transaction.commit(self._filters(), firewall.unpublish(self._table, entries))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            present = {name: {item.key for item in self._load(name)} for name in entries}
            rest = {name: [item for item in items if item.key in present[name]] for name, items in entries.items()}
            transaction.commit(self._filters(), firewall.unpublish(self._table, rest))
        self._forget_flows(rules)

    def delete_link(self, name: str) -> bool:
        """Delete a pod's link explicitly; return whether it was there."""
        return self._has(self._routes(), links.delete(name))

    def pod_links(self) -> frozenset[str]:
        """Return the names of all pod links of this instance."""
        return pod_links(list_links(self._routes()), self._prefix)

    def repair(self, ports: Sequence[tuple[Owner, PortRule]], senders: Sequence[Sender]) -> list[str]:
        """Make again what someone took away or changed: tables, bridge, pods' places on it; return what was made.

        `nft flush ruleset` takes every table of the host, ours too; a bridge that goes leaves its ports behind.
        """
        made = self._repair_tables(ports, senders)
        route = self._routes()
        found = list_links(route)
        link = next((link for link in found if link.name == self._settings.bridge), None)
        if link is None or link.index != self._bridge_index() or not is_whole(route, link, self._subnets):
            self._bridge = ensure_bridge(route, self._settings, self._subnets)
            allow_loopback(self._settings.bridge)
            made.append(f"bridge {self._settings.bridge}")
        assert self._bridge is not None
        return made + [
            f"place of {name} on the bridge" for name in rejoin(route, self._bridge, found, _links_of(senders))
        ]

    def _repair_tables(self, ports: Sequence[tuple[Owner, PortRule]], senders: Sequence[Sender]) -> list[str]:
        """Make tables again that lack something; a look at them only if anything of the ruleset changed."""
        generation = self._look_up_generation()
        if generation == self._generation:
            return []
        made = []
        if not self._table_is_whole(ports):
            self._build_table(ports)
            made.append(f"nftables table {self._table}")
        if not self.admission.is_whole(self._filters(), senders):
            self.admission.build(self._filters(), senders)
            made.append(f"nftables table bridge {self._table}")
        self._generation = None if made else generation
        return made

    def _table_is_whole(self, ports: Sequence[tuple[Owner, PortRule]]) -> bool:
        """Tell whether the table holds its chains, its rules and these elements."""
        connection = self._filters()
        wanted = firewall.table(self._table, self._settings.bridge, self._subnets, ())
        rules = sum(request.what.startswith("add a rule") for request in wanted)
        return (
            self._has(connection, messages.get_table(self._table))
            and len(connection.dump(listing.list_rules(self._table))) == rules
            and all(
                {(item.key, item.data) for item in items} <= {(item.key, item.data) for item in self._load(name)}
                for name, items in firewall.elements(rule for _, rule in ports).items()
            )
        )

    def _look_up_generation(self) -> int:
        return listing.parse_generation(self._filters().request([listing.get_generation()])[0].payload)

    @staticmethod
    def _has(connection: Connection, request: wire.Request) -> bool:
        """Make a request that fails if its object is not there."""
        try:
            connection.request([request])
        except KernelError as error:
            if error.errno not in _ABSENT:
                raise
            return False
        return True

    def remove(self) -> None:
        """Delete the tables and the bridge; absent ones are fine."""
        self.admission.remove(self._filters())
        if self._has(self._filters(), messages.get_table(self._table)):
            transaction.commit(self._filters(), [messages.delete_table(self._table)])
        self._has(self._routes(), links.delete(self._settings.bridge))

    def _build_table(self, ports: Sequence[tuple[Owner, PortRule]]) -> None:
        requests = firewall.table(self._table, self._settings.bridge, self._subnets, ports)
        transaction.commit(self._filters(), requests)

    def _load_ports(self) -> Iterable[tuple[Owner, PortRule]]:
        for name in firewall.MAPS:
            yield from (firewall.parse(name, element) for element in self._load(name))

    def _load(self, name: str) -> list[messages.Element]:
        """Return the elements of one of the table's maps and sets; none if it is not there."""
        try:
            answers = self._filters().dump(messages.list_elements(self._table, name))
        except KernelError as error:
            if error.errno not in _ABSENT:
                raise
            return []
        return [element for message in answers for element in messages.parse_elements(message.payload)]

    def _forget_flows(self, rules: Sequence[PortRule]) -> None:
        """Forget the tracked flows to published UDP ports; one walk of the kernel's table for each family."""
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            wanted = {
                (socket.inet_pton(family, rule.host_ip) if rule.host_ip else b"", rule.host_port)
                for rule in rules
                if rule.protocol == PROTOCOLS[Protocol.UDP] and rule.version == version
            }
            if not wanted or sysctl.read("netfilter/nf_conntrack_count") == "0":
                continue
            address, port = next(iter(wanted)) if len(wanted) == 1 else (b"", 0)
            connection = self._filters()
            for flow in connection.dump(conntrack.list_udp(family, port, address)):
                target, number = conntrack.destination(flow.payload)
                if (target, number) in wanted or (b"", number) in wanted:
                    self._has(connection, conntrack.delete(flow.payload))

    def _routes(self) -> Connection:
        if self._route is None:
            raise FailedPreconditionError("the network is not started")
        return self._route

    def _filters(self) -> Connection:
        if self._netfilter is None:
            raise FailedPreconditionError("the network is not started")
        return self._netfilter

    def _bridge_index(self) -> int:
        if self._bridge is None:
            raise FailedPreconditionError("the network is not started")
        return self._bridge.index


def _links_of(senders: Sequence[Sender]) -> frozenset[str]:
    return frozenset(sender.link for sender in senders)


def _configure(inside: Connection, plan: PodPlan) -> None:
    """Set the pod's side up: `lo`, addresses, default routes; the interface."""
    loopback, answer = links.set_up(links.LOOPBACK_INDEX, "lo"), links.get(INTERFACE)
    index = links.parse(inside.request([loopback, answer])[0].payload).index
    requests = [links.set_up(index, INTERFACE)]
    for given in plan.addresses:
        requests.append(addresses.add_address(index, given.address, given.subnet.prefix))
        requests.append(addresses.add_default_route(index, given.subnet.gateway))
    inside.request(requests)
