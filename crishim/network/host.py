"""What a host has against pods' networks, and what it lacks for them; for `crishim check`.

What is needed is tried, for real, in network namespaces that nobody else sees and that end with the try. Invariant: the
host's own links, rules and switches are looked at, never changed (the kernel may load modules, as the daemon makes it
do). Out of scope: how bad a finding is.
"""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crishim.errors import CrishimError, KernelError
from crishim.linux import calls, xtables
from crishim.linux.netlink import conntrack
from crishim.linux.netlink import link as links
from crishim.linux.netlink.connection import NETFILTER, Connection
from crishim.linux.nft import listing, transaction
from crishim.network import firewall, guard
from crishim.network.plan import Subnet, link_prefix

_NAME = "probe0"
_MAC = "0a:58:00:00:00:01"
_MTU = 1500
_AF_INET = 2
OWN_ADDRESSES = "pods' own addresses"
_NAT_REMEDY = (
    "modprobe -a nft_chain_nat nft_masq nft_fib_inet nft_ct, or use a kernel with CONFIG_NFT_NAT, CONFIG_NFT_MASQ,"
    " CONFIG_NFT_FIB_INET and CONFIG_NFT_CT"
)


@dataclass(frozen=True, slots=True)
class Barrier:
    """A firewall chain that drops forwarded packets and has no rule for our bridge; with a command to run."""

    name: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Lack:
    """A need that the host does not meet: the kernel's words, and what to do; without an optional one pods do run."""

    need: str
    problem: str
    remedy: str
    optional: bool = False


def barriers(bridge: str) -> tuple[Barrier, ...]:
    """Return the chains that may keep the bridge's pods from what is beyond it.

    Raises:
        KernelError: the rules cannot be read.
    """
    with Connection(NETFILTER) as connection:
        chains = [listing.parse_chain(message.payload) for message in connection.dump(listing.list_chains())]
        closed = [chain for chain in chains if _drops(chain) and not _lets_through(connection, chain, bridge)]
    found = [_nft_barrier(chain, bridge) for chain in closed]
    for version, program in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        policy, accepted = xtables.forward_chain(version)
        if policy == xtables.DROP and not {("in", bridge), ("out", bridge)} <= accepted:
            found.append(Barrier(f"chain FORWARD of {program}", _iptables(program, bridge)))
    return tuple(found)


def lacks(subnets: Sequence[Subnet]) -> tuple[Lack, ...] | None:
    """Return which of the network's needs are not met, None if it cannot be tried (no right to make namespaces)."""
    found: list[Lack] = []
    tried: list[bool] = []

    def enter_and_try() -> None:
        try:
            calls.unshare(calls.CLONE_NEWNET)
        except OSError:
            return
        tried.append(True)
        for need, attempt, remedy in _needs(subnets):
            try:
                attempt()
            except (CrishimError, OSError) as error:
                found.append(Lack(need, str(error), remedy, optional=need == OWN_ADDRESSES))

    thread = threading.Thread(target=enter_and_try, name="probe")  # its namespaces end with it
    thread.start()
    thread.join()
    return tuple(found) if tried else None


def _drops(chain: listing.Chain) -> bool:
    return chain.hook == listing.FORWARD and chain.policy == listing.DROP and chain.family not in {"arp", "netdev"}


def _lets_through(connection: Connection, chain: listing.Chain, bridge: str) -> bool:
    """Tell whether rules like those of the remedy are there already."""
    name = link_prefix(bridge) if chain.family == "bridge" else bridge
    rules = connection.dump(listing.list_rules(chain.table, chain.family, chain.name))
    accepted = {listing.accepted_interface(message.payload) for message in rules}
    return {("in", name), ("out", name)} <= accepted


def _nft_barrier(chain: listing.Chain, bridge: str) -> Barrier:
    name = f"chain {chain.family} {chain.table} {chain.name}"
    if (chain.table, chain.name) == ("filter", "FORWARD") and chain.family in {"ip", "ip6"}:
        return Barrier(name, _iptables("iptables" if chain.family == "ip" else "ip6tables", bridge))
    # between two ports of a bridge the interfaces are the pods' links
    interface = f"'{link_prefix(bridge)}*'" if chain.family == "bridge" else bridge
    rule = f"nft insert rule {chain.family} {chain.table} {chain.name}"
    return Barrier(name, f"{rule} iifname {interface} accept; {rule} oifname {interface} accept")


def _iptables(program: str, bridge: str) -> str:
    return f"{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT"


def _needs(subnets: Sequence[Subnet]) -> list[tuple[str, Callable[[], object], str]]:
    return [
        ("bridge", _try_bridge, "modprobe bridge, or use a kernel with CONFIG_BRIDGE"),
        ("veth", _try_veth, "modprobe veth, or use a kernel with CONFIG_VETH"),
        (
            "address translation",
            lambda: _try_table(subnets),
            _NAT_REMEDY,
        ),
        (
            "connection tracking",
            _try_conntrack,
            "modprobe nf_conntrack_netlink, or use a kernel with CONFIG_NF_CT_NETLINK",
        ),
        ("loopback routing", _try_route_localnet, "mount /proc with /proc/sys, writable"),
        (
            OWN_ADDRESSES,
            _try_guard,
            "use a kernel with CONFIG_NF_TABLES_BRIDGE; without it a pod can send under its neighbours' addresses",
        ),
    ]


def _try_bridge() -> None:
    with Connection() as route:
        route.request([links.add_bridge(_NAME, mac=_MAC, mtu=_MTU)])


def _try_veth() -> None:
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Connection() as route:
            route.request([links.add_bridge("probe1", mac=_MAC, mtu=_MTU)])
            master = links.parse(route.request([links.get("probe1")])[0].payload).index
            veth = links.add_veth(
                "probe2", master=master, mtu=_MTU, peer_name="probe3", peer_mac=_MAC, peer_netns_fd=fd
            )
            route.request([veth, links.set_hairpin("probe2")])
    finally:
        os.close(fd)


def _try_table(subnets: Sequence[Subnet]) -> None:
    with Connection(NETFILTER) as connection:
        transaction.commit(connection, firewall.table("probe", _NAME, subnets, ()))


def _try_guard() -> None:
    with Connection(NETFILTER) as connection:
        transaction.commit(connection, guard.table("probe", _NAME, link_prefix(_NAME), ()))


def _try_conntrack() -> None:
    with Connection(NETFILTER) as connection:
        connection.dump(conntrack.list_udp(_AF_INET, 1))


def _try_route_localnet() -> None:
    path = "/proc/sys/net/ipv4/conf/lo/route_localnet"
    if not os.access(path, os.W_OK):
        raise KernelError(f"write {path}", errno.EROFS if os.path.exists(path) else errno.ENOENT)
