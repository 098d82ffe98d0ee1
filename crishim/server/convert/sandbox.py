"""PodSandboxConfig and sandbox filters: protobuf → request records."""

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.views import SandboxFilter, SandboxState
from crishim.problems import Problems
from crishim.request import (
    DnsConfig,
    Metadata,
    PortMapping,
    Protocol,
    SandboxConfig,
    SandboxSecurity,
)
from crishim.server.convert import resources, security
from crishim.server.convert.fields import choice


def config(problems: Problems, message: pb.PodSandboxConfig, path: str = "config") -> SandboxConfig:
    """Return the configuration of a sandbox; `path` is its field in the request, for problems."""
    linux = message.linux
    return SandboxConfig(
        metadata=metadata(message.metadata),
        hostname=message.hostname,
        log_directory=message.log_directory,
        dns=_dns(message.dns_config) if message.HasField("dns_config") else None,
        port_mappings=_ports(problems, message, f"{path}.port_mappings"),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        cgroup_parent=linux.cgroup_parent,
        sysctls=dict(linux.sysctls),
        overhead=resources.from_message(linux.overhead) if linux.HasField("overhead") else None,
        resources=resources.from_message(linux.resources) if linux.HasField("resources") else None,
        security=security.sandbox(problems, linux.security_context, f"{path}.linux.security_context")
        if linux.HasField("security_context")
        else SandboxSecurity(),
    )


def wanted(message: pb.PodSandboxFilter) -> SandboxFilter:
    """Return the conditions of ListPodSandbox."""
    state = None
    if message.HasField("state"):
        problems = Problems()
        state = choice(problems, "filter.state.state", SandboxState, message.state.state)
        problems.check()
    return SandboxFilter(id=message.id, state=state, labels=dict(message.label_selector))


def wanted_stats(message: pb.PodSandboxStatsFilter) -> SandboxFilter:
    """Return the conditions of ListPodSandboxStats."""
    return SandboxFilter(id=message.id, labels=dict(message.label_selector))


def metadata(message: pb.PodSandboxMetadata) -> Metadata:
    """Return a sandbox's identity."""
    return Metadata(message.name, message.uid, message.namespace, message.attempt)


def _dns(message: pb.DNSConfig) -> DnsConfig:
    return DnsConfig(tuple(message.servers), tuple(message.searches), tuple(message.options))


def _ports(problems: Problems, message: pb.PodSandboxConfig, path: str) -> tuple[PortMapping, ...]:
    return tuple(
        PortMapping(
            protocol=choice(problems, f"{path}[{n}].protocol", Protocol, item.protocol),
            container_port=item.container_port,
            host_port=item.host_port,
            host_ip=item.host_ip,
        )
        for n, item in enumerate(message.port_mappings)
    )
