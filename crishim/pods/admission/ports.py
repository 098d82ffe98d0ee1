"""Published ports."""

import ipaddress

from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import NamespaceMode, PortMapping, Protocol, SandboxConfig

MAX_PORT = 65535
_FIELD = "config.port_mappings"


def sandbox(problems: Problems, config: SandboxConfig) -> None:
    """Judge the ports alone: whether a host port is free is the network's to know."""
    host_network = config.security.namespaces.network is NamespaceMode.NODE
    taken: dict[tuple[Protocol, int, str], int] = {}
    for n, mapping in enumerate(config.port_mappings):
        at = f"{_FIELD}[{n}]"
        _one(problems, at, mapping)
        if not mapping.host_port:
            continue
        if host_network and mapping.host_port != mapping.container_port:
            problems.add(
                f"{at}.host_port", f"{mapping.host_port} cannot be mapped to another port in the host's own network"
            )
        first = taken.setdefault((mapping.protocol, mapping.host_port, mapping.host_ip), n)
        if first != n:
            problems.add(f"{at}.host_port", f"{mapping.host_port} is already published by {_FIELD}[{first}]")


def _one(problems: Problems, at: str, mapping: PortMapping) -> None:
    checks.number(problems, f"{at}.container_port", mapping.container_port, 1, MAX_PORT)
    checks.number(problems, f"{at}.host_port", mapping.host_port, 0, MAX_PORT)
    if mapping.host_ip:
        try:
            ipaddress.ip_address(mapping.host_ip)
        except ValueError:
            problems.add(f"{at}.host_ip", f"must be an IP address, is {mapping.host_ip!r}")
