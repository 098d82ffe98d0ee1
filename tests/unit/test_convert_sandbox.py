"""Sandboxes from protobuf and back: fields, defaults, and what is refused by its path."""

from collections.abc import Callable

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.pods.views import SandboxFilter, SandboxState
from crishim.problems import Problems
from crishim.request import (
    DnsConfig,
    GroupsPolicy,
    IdMapping,
    Metadata,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    ProfileType,
    Protocol,
    Resources,
    SandboxConfig,
    SecurityProfile,
    SelinuxOptions,
    UserNamespace,
)
from crishim.server.convert import sandbox

Change = Callable[[pb.PodSandboxConfig], object]


def minimal() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web"))


def test_minimal_config_is_all_defaults() -> None:
    assert sandbox.config(Problems(), minimal()) == SandboxConfig(Metadata("web"))


def test_every_field_arrives() -> None:
    message = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="ns", attempt=3),
        hostname="web-0",
        log_directory="/var/log/pods/ns_web_u",
        dns_config=pb.DNSConfig(servers=["10.0.0.10"], searches=["svc.local"], options=["ndots:5"]),
        port_mappings=[pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=9999, host_ip="127.0.0.1")],
        labels={"a": "b"},
        annotations={"c": "d"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/podx",
            sysctls={"net.core.somaxconn": "100"},
            overhead=pb.LinuxContainerResources(cpu_shares=10),
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=2**30),
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER, ipc=pb.NODE),
                selinux_options=pb.SELinuxOption(user="u", role="r", type="t", level="l"),
                run_as_user=pb.Int64Value(value=0),
                run_as_group=pb.Int64Value(value=7),
                readonly_rootfs=True,
                supplemental_groups=[1, 2],
                supplemental_groups_policy=pb.Strict,
                privileged=True,
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/p.json"),
                apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
            ),
        ),
    )
    config = sandbox.config(Problems(), message)
    assert config.metadata == Metadata("web", "u", "ns", 3)
    assert (config.hostname, config.log_directory) == ("web-0", "/var/log/pods/ns_web_u")
    assert config.dns == DnsConfig(("10.0.0.10",), ("svc.local",), ("ndots:5",))
    assert config.port_mappings == (PortMapping(Protocol.UDP, 53, 9999, "127.0.0.1"),)
    assert (config.labels, config.annotations) == ({"a": "b"}, {"c": "d"})
    assert (config.cgroup_parent, config.sysctls) == ("/kubepods/podx", {"net.core.somaxconn": "100"})
    assert config.overhead == Resources(cpu_shares=10)
    assert config.resources == Resources(memory_limit_in_bytes=2**30)
    security = config.security
    assert security.namespaces == NamespaceOptions(NamespaceMode.NODE, NamespaceMode.CONTAINER, NamespaceMode.NODE)
    assert security.selinux == SelinuxOptions("u", "r", "t", "l")
    assert (security.run_as_user, security.run_as_group) == (0, 7)
    assert (security.readonly_rootfs, security.privileged) == (True, True)
    assert security.supplemental_groups == (1, 2)
    assert security.supplemental_groups_policy is GroupsPolicy.STRICT
    assert security.seccomp == SecurityProfile(ProfileType.LOCALHOST, "/p.json")
    assert security.apparmor == SecurityProfile(ProfileType.UNCONFINED)


def test_dns_unset_and_empty_differ() -> None:
    message = minimal()
    assert sandbox.config(Problems(), message).dns is None
    message.dns_config.SetInParent()
    assert sandbox.config(Problems(), message).dns == DnsConfig()


def test_user_namespace_of_kubelet() -> None:
    message = minimal()
    options = message.linux.security_context.namespace_options.userns_options
    options.mode = pb.POD
    for field in (options.uids, options.gids):
        field.add(host_id=65536, container_id=0, length=65536)
    mapping = (IdMapping(65536, 0, 65536),)
    assert sandbox.config(Problems(), message).security.namespaces.userns == UserNamespace(
        NamespaceMode.POD, mapping, mapping
    )


def test_filters() -> None:
    assert sandbox.wanted(pb.PodSandboxFilter()) == SandboxFilter()
    message = pb.PodSandboxFilter(
        id="ab", state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY), label_selector={"a": "b"}
    )
    assert sandbox.wanted(message) == SandboxFilter("ab", SandboxState.NOTREADY, {"a": "b"})
    message.state.state = 9  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match=r"filter\.state\.state: must be READY or NOTREADY, is 9"):
        sandbox.wanted(message)
