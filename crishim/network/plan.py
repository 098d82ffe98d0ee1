"""Decide a pod's network in pure code: subnets, names, hardware addresses, port rules.

Nothing here touches the kernel. Invariant: everything that has a name in the kernel derives from the instance's
bridge and the pod's id, so two instances never make, see or remove each other's links.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from crishim.errors import InvalidArgumentError
from crishim.network.guard import Sender
from crishim.network.model import AttachRequest
from crishim.problems import Problems
from crishim.request import PortMapping, Protocol

INTERFACE = "eth0"
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
POD_CIDR_FIELD = "runtime_config.network_config.pod_cidr"
_LEAST_HOSTS = 4  # network, gateway, one pod, broadcast
_LONGEST_NAME = 15  # IFNAMSIZ - 1

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Subnet:
    """One family's range: `text` is its name in the store, the gateway is its first address, on the bridge."""

    text: str
    network: IpNetwork
    gateway: str
    prefix: int
    version: int


@dataclass(frozen=True, slots=True)
class PodAddress:
    """One address of a pod and the subnet that it comes from."""

    address: str
    subnet: Subnet


@dataclass(frozen=True, slots=True)
class PortRule:
    """One entry of a port map: what arrives at `host_ip` ("" is any local address) goes to the pod.

    `version` is the IP version, `protocol` an IP protocol number.
    """

    version: int
    protocol: int
    host_ip: str
    host_port: int
    address: str
    container_port: int

    @property
    def key(self) -> tuple[int, int, str, int]:
        """What can belong to one pod only."""
        return self.version, self.protocol, self.host_ip, self.host_port


@dataclass(frozen=True, slots=True)
class PodPlan:
    """Everything that is made for one pod."""

    pod_id: str
    link: str
    mac: str
    mtu: int
    addresses: tuple[PodAddress, ...]
    rules: tuple[PortRule, ...] = field(default=())

    @property
    def sender(self) -> Sender:
        """What the pod may send as."""
        return plan_sender(self.link, [given.address for given in self.addresses])


def plan_sender(link: str, addresses: Sequence[str]) -> Sender:
    """Return what a pod with these addresses may send as; the first one gives the hardware address."""
    return Sender(link, hardware_address(addresses[0]), tuple(addresses))


def plan_subnets(texts: Sequence[str], field: str = "network.subnets") -> tuple[Subnet, ...]:
    """Parse subnets, IPv4 first; `field` says in errors where they come from.

    Raises:
        InvalidArgumentError: no subnet at all, one that is none, too small or not for pods, or two of one family.
    """
    subnets: dict[int, Subnet] = {}
    for number, text in enumerate(texts):
        path = f"{field}[{number}]"
        try:
            network = ipaddress.ip_network(text, strict=True)
        except ValueError as error:
            raise InvalidArgumentError(path, f"{text!r} is no subnet like 10.88.0.0/16 ({error})") from None
        if network.num_addresses < _LEAST_HOSTS:
            raise InvalidArgumentError(
                path, f"{text!r} has no room for a gateway and a pod; use /30 (IPv6: /126) or more"
            )
        special = _special(network)
        if special:
            raise InvalidArgumentError(path, f"{text!r} is for {special}; use a private range like 10.88.0.0/16")
        if network.version in subnets:
            raise InvalidArgumentError(
                path, f"{text!r} is the second subnet of IPv{network.version}; give one of each family"
            )
        gateway = str(network.network_address + 1)
        subnets[network.version] = Subnet(str(network), network, gateway, network.prefixlen, network.version)
    if not subnets:
        raise InvalidArgumentError(field, "is empty; give at least one subnet like 10.88.0.0/16")
    return tuple(subnets[version] for version in sorted(subnets))


def plan_pod_cidr(text: str) -> tuple[Subnet, ...]:
    """Parse a pod CIDR as kubelet gives it (UpdateRuntimeConfig): a subnet, or two with a comma; () for an empty one.

    Raises:
        InvalidArgumentError: as for `plan_subnets`.
    """
    if not text.strip():
        return ()
    return plan_subnets([part.strip() for part in text.split(",")], POD_CIDR_FIELD)


def link_prefix(bridge: str) -> str:
    """Return what the names of an instance's links begin with: `v`, four digits of its bridge's digest."""
    return "v" + hashlib.sha256(bridge.encode()).hexdigest()[:4]


def link_name(bridge: str, pod_id: str) -> str:
    """Return the name of a pod's link on the host; ten digits of the id keep pods of one host apart."""
    prefix = link_prefix(bridge)
    return prefix + pod_id[: _LONGEST_NAME - len(prefix)]


def is_link_name(name: str, prefix: str) -> bool:
    """Tell whether a link's name is one that `link_name` gives with this prefix."""
    digits = name.removeprefix(prefix)
    return (
        len(name) == _LONGEST_NAME and name.startswith(prefix) and all(digit in "0123456789abcdef" for digit in digits)
    )


def hardware_address(address: str) -> str:
    """Return a locally administered MAC derived from an address.

    One address always has one MAC, so a neighbour's cache is right even when the address has gone to another pod.
    """
    raw = ipaddress.ip_address(address).packed
    tail = raw if len(raw) == 4 else hashlib.sha256(raw).digest()[:4]
    return "0a:58:" + tail.hex(":")


def check_ports(ports: Sequence[PortMapping], versions: Sequence[int]) -> None:
    """Compare a request's ports, valid in form, with the families that pods have.

    Raises:
        InvalidArgumentError: names each host address that cannot be published on.
    """
    problems = Problems()
    for number, port in enumerate(ports):
        if port.host_ip and port.host_port and (what := _host_ip_problem(port.host_ip, versions)):
            problems.add(f"config.port_mappings[{number}].host_ip", what)
    problems.check()


def plan_rules(request: AttachRequest, addresses: Sequence[PodAddress]) -> tuple[PortRule, ...]:
    """Return the map entries for a request's ports; a port without a host port is not published.

    A port without host IP is published on each family that the pod has, `0.0.0.0` and `::` on theirs alone.
    """
    rules: dict[tuple[int, int, str, int], PortRule] = {}
    for port in request.ports:
        if not port.host_port:
            continue
        wanted = ipaddress.ip_address(port.host_ip) if port.host_ip else None
        host_ip = "" if wanted is None or wanted.is_unspecified else str(wanted)
        for given in addresses:
            version = given.subnet.version
            if wanted is not None and wanted.version != version:
                continue
            protocol = PROTOCOLS[port.protocol]
            rule = PortRule(version, protocol, host_ip, port.host_port, given.address, port.container_port)
            rules[rule.key] = rule
    return tuple(rules.values())


def _special(network: IpNetwork) -> str:
    """Return what a network that cannot be pods' is for, "" for others."""
    if network.is_loopback:
        return "loopback"
    if network.is_multicast:
        return "multicast"
    if network.is_link_local:
        return "link-local addresses"
    return "no host" if network.network_address.is_unspecified else ""


def _host_ip_problem(text: str, versions: Sequence[int]) -> str:
    address = ipaddress.ip_address(text)
    if address == ipaddress.IPv6Address("::1"):
        return "::1 cannot be forwarded (the kernel routes it nowhere else); use 127.0.0.1 or another IPv6 address"
    if address.version not in versions:
        return f"{text} is IPv{address.version}, but this instance's pods have none; add such a subnet"
    return ""
