"""PodSandboxConfig and sandbox filters: protobuf → request records."""

import ipaddress

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import (
    DnsConfig,
    Metadata,
    PortMapping,
    Protocol,
    SandboxConfig,
    SandboxSecurity,
)
from crishim.errors import InvalidArgumentError
from crishim.pods.views import SandboxFilter, SandboxState
from crishim.server.convert import resources, security
from crishim.server.convert.fields import Problems

MAX_HOSTNAME = 64
"""Bytes (`__NEW_UTS_LEN`, sethostname(2))."""
MAX_PORT = 65535


def config(message: pb.PodSandboxConfig, path: str = "config") -> SandboxConfig:
    """Return the configuration of a sandbox.

    Args:
        message: the configuration as it came.
        path: its field in the request, for messages.

    Raises:
        InvalidArgumentError: with every problem found.
    """
    problems = Problems()
    linux = message.linux
    at = f"{path}.linux"
    result = SandboxConfig(
        metadata=_metadata(problems, message, f"{path}.metadata"),
        hostname=_hostname(problems, message.hostname, f"{path}.hostname"),
        log_directory=_log_directory(problems, message.log_directory, f"{path}.log_directory"),
        dns=_dns(problems, message.dns_config, f"{path}.dns_config") if message.HasField("dns_config") else None,
        port_mappings=_ports(problems, message, f"{path}.port_mappings"),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        cgroup_parent=problems.no_climbing(f"{at}.cgroup_parent", linux.cgroup_parent),
        sysctls=dict(linux.sysctls),
        overhead=resources.from_message(problems, linux.overhead, f"{at}.overhead")
        if linux.HasField("overhead")
        else None,
        resources=resources.from_message(problems, linux.resources, f"{at}.resources")
        if linux.HasField("resources")
        else None,
        security=security.sandbox(problems, linux.security_context, f"{at}.security_context")
        if linux.HasField("security_context")
        else SandboxSecurity(),
    )
    problems.check()
    return result


def wanted(message: pb.PodSandboxFilter) -> SandboxFilter:
    """Return the conditions of ListPodSandbox."""
    state = None
    if message.HasField("state"):
        problems = Problems()
        state = problems.choice("filter.state.state", SandboxState, message.state.state)
        problems.check()
    return SandboxFilter(id=message.id, state=state, labels=dict(message.label_selector))


def wanted_stats(message: pb.PodSandboxStatsFilter) -> SandboxFilter:
    """Return the conditions of ListPodSandboxStats."""
    return SandboxFilter(id=message.id, labels=dict(message.label_selector))


def _metadata(problems: Problems, message: pb.PodSandboxConfig, path: str) -> Metadata:
    if not message.HasField("metadata"):
        raise InvalidArgumentError(path, "is missing: a sandbox is known by its name, namespace, uid and attempt")
    given = message.metadata
    return Metadata(
        name=problems.given(f"{path}.name", given.name),
        uid=problems.c_string(f"{path}.uid", given.uid),
        namespace=problems.c_string(f"{path}.namespace", given.namespace),
        attempt=given.attempt,
    )


def _hostname(problems: Problems, value: str, path: str) -> str:
    if len(value.encode()) > MAX_HOSTNAME:
        problems.add(path, f"must be at most {MAX_HOSTNAME} bytes, is {len(value.encode())}")
    if any(character.isspace() for character in value):
        problems.add(path, f"must not contain spaces, is {value!r}")
    return problems.one_line(path, value)


def _log_directory(problems: Problems, value: str, path: str) -> str:
    problems.absolute(path, value, optional=True)
    return problems.no_climbing(path, value)


def _dns(problems: Problems, message: pb.DNSConfig, path: str) -> DnsConfig:
    """Return the content of resolv.conf; a line break in a value would be a line of the caller's choice."""
    for field in ("servers", "searches", "options"):
        for n, value in enumerate(getattr(message, field)):
            problems.one_line(f"{path}.{field}[{n}]", value)
    return DnsConfig(tuple(message.servers), tuple(message.searches), tuple(message.options))


def _ports(problems: Problems, message: pb.PodSandboxConfig, path: str) -> tuple[PortMapping, ...]:
    result: list[PortMapping] = []
    taken: dict[tuple[Protocol, int, str], int] = {}
    for n, item in enumerate(message.port_mappings):
        at = f"{path}[{n}]"
        mapping = PortMapping(
            protocol=problems.choice(f"{at}.protocol", Protocol, item.protocol),
            container_port=problems.number(f"{at}.container_port", item.container_port, 1, MAX_PORT),
            host_port=problems.number(f"{at}.host_port", item.host_port, 0, MAX_PORT),
            host_ip=_address(problems, f"{at}.host_ip", item.host_ip),
        )
        result.append(mapping)
        if mapping.host_port:
            first = taken.setdefault((mapping.protocol, mapping.host_port, mapping.host_ip), n)
            if first != n:
                problems.add(f"{at}.host_port", f"{mapping.host_port} is already published by {path}[{first}]")
    return tuple(result)


def _address(problems: Problems, path: str, value: str) -> str:
    if value:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            problems.add(path, f"must be an IP address, is {value!r}")
    return value
