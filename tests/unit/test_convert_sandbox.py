"""Sandboxes from protobuf and back: fields, defaults, and what is refused by its path."""

from collections.abc import Callable

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import (
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
from crishim.errors import InvalidArgumentError
from crishim.pods.views import SandboxFilter, SandboxState
from crishim.server.convert import sandbox

Change = Callable[[pb.PodSandboxConfig], object]


def minimal() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web"))


def test_minimal_config_is_all_defaults() -> None:
    assert sandbox.config(minimal()) == SandboxConfig(Metadata("web"))


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
    config = sandbox.config(message)
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
    assert sandbox.config(message).dns is None
    message.dns_config.SetInParent()
    assert sandbox.config(message).dns == DnsConfig()


def test_user_namespace_of_kubelet() -> None:
    message = minimal()
    options = message.linux.security_context.namespace_options.userns_options
    options.mode = pb.POD
    for field in (options.uids, options.gids):
        field.add(host_id=65536, container_id=0, length=65536)
    mapping = (IdMapping(65536, 0, 65536),)
    assert sandbox.config(message).security.namespaces.userns == UserNamespace(NamespaceMode.POD, mapping, mapping)


def linux(message: pb.PodSandboxConfig) -> pb.LinuxPodSandboxConfig:
    return message.linux


def context(message: pb.PodSandboxConfig) -> pb.LinuxSandboxSecurityContext:
    return message.linux.security_context


def userns(mode: int, *container_ids: int) -> Change:
    def change(message: pb.PodSandboxConfig) -> None:
        options = context(message).namespace_options.userns_options
        options.mode = pb.NamespaceMode.ValueType(mode)
        for field in (options.uids, options.gids):
            for container_id in container_ids:
                field.add(host_id=1000, container_id=container_id, length=1)

    return change


def port(**fields: object) -> Change:
    return lambda message: message.port_mappings.append(pb.PortMapping(**fields))  # type: ignore[arg-type]


def set_field(name: str, value: object) -> Change:
    def change(message: pb.PodSandboxConfig) -> None:
        *way, last = name.split(".")
        target: object = message
        for step in way:
            target = getattr(target, step)
        setattr(target, last, value)

    return change


BASE = "config.linux.security_context"
BAD: list[tuple[Change, str]] = [
    (lambda m: m.ClearField("metadata"), "config.metadata: is missing"),
    (set_field("metadata.name", ""), "config.metadata.name: is missing"),
    (set_field("metadata.uid", "a\0b"), "config.metadata.uid: must not contain a NUL"),
    (set_field("hostname", "h" * 65), "config.hostname: must be at most 64 bytes"),
    (set_field("hostname", "a\nb"), "config.hostname: "),
    (set_field("log_directory", "logs"), "config.log_directory: must be an absolute path"),
    (set_field("log_directory", "/var/log/../../etc"), "config.log_directory: must not contain '..'"),
    (set_field("linux.cgroup_parent", "/a/../.."), "config.linux.cgroup_parent: must not contain '..'"),
    (lambda m: m.dns_config.servers.append("1.1.1.1\nsearch evil"), "config.dns_config.servers[0]: must not contain"),
    (port(container_port=0), "config.port_mappings[0].container_port: must be 1 to 65535, is 0"),
    (port(container_port=80, host_port=70000), "config.port_mappings[0].host_port: must be 0 to 65535"),
    (port(container_port=80, host_port=-1), "config.port_mappings[0].host_port: must be 0 to 65535, is -1"),
    (port(container_port=80, host_ip="localhost"), "config.port_mappings[0].host_ip: must be an IP address"),
    (port(container_port=80, protocol=9), "config.port_mappings[0].protocol: must be TCP or UDP or SCTP, is 9"),
    (set_field("linux.resources.cpu_period", -5), "config.linux.resources.cpu_period: must be 1000 to 1000000"),
    (set_field("linux.overhead.memory_limit_in_bytes", -5), "config.linux.overhead.memory_limit_in_bytes: must not be"),
    (
        set_field(f"{BASE[7:]}.namespace_options.network", pb.CONTAINER),
        f"{BASE}.namespace_options.network: must be POD",
    ),
    (set_field(f"{BASE[7:]}.namespace_options.pid", pb.TARGET), f"{BASE}.namespace_options.pid: must be POD or"),
    (set_field(f"{BASE[7:]}.namespace_options.ipc", 17), f"{BASE}.namespace_options.ipc: must be POD or NODE, is 17"),
    (set_field(f"{BASE[7:]}.run_as_group.value", 5), f"{BASE}.run_as_group: needs a user"),
    (set_field(f"{BASE[7:]}.run_as_user.value", -1), f"{BASE}.run_as_user: must be 0 to 4294967294, is -1"),
    (set_field(f"{BASE[7:]}.run_as_user.value", 2**32 - 1), f"{BASE}.run_as_user: must be 0 to 4294967294"),
    (lambda m: context(m).supplemental_groups.append(-2), f"{BASE}.supplemental_groups[0]: must be 0 to"),
    (set_field(f"{BASE[7:]}.supplemental_groups_policy", 2), f"{BASE}.supplemental_groups_policy: must be MERGE or"),
    (set_field(f"{BASE[7:]}.seccomp.profile_type", 2), f"{BASE}.seccomp.localhost_ref: is missing"),
    (set_field(f"{BASE[7:]}.seccomp.localhost_ref", "/p"), f"{BASE}.seccomp.localhost_ref: must be empty"),
    (set_field(f"{BASE[7:]}.seccomp_profile_path", "profile"), f"{BASE}.seccomp_profile_path: must be runtime/default"),
    (userns(pb.CONTAINER, 0), f"{BASE}.namespace_options.userns_options.mode: must be POD or NODE, is CONTAINER"),
    (userns(pb.TARGET, 0), f"{BASE}.namespace_options.userns_options.mode: must be POD or NODE, is TARGET"),
    (userns(pb.POD), f"{BASE}.namespace_options.userns_options.uids: must hold just one mapping, holds 0"),
    (userns(pb.POD, 0, 5), f"{BASE}.namespace_options.userns_options.uids: must hold just one mapping, holds 2"),
    (userns(pb.POD, 1), f"{BASE}.namespace_options.userns_options.uids[0].container_id: must be 0, is 1"),
    (userns(pb.NODE, 0), f"{BASE}.namespace_options.userns_options.uids: must be empty with mode NODE"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_config_names_the_field(change: Change, message: str) -> None:
    config = minimal()
    change(config)
    with pytest.raises(InvalidArgumentError) as caught:
        sandbox.config(config)
    assert message in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    config = minimal()
    config.hostname = "h" * 65
    config.log_directory = "x"
    with pytest.raises(InvalidArgumentError) as caught:
        sandbox.config(config)
    assert "config.hostname: " in str(caught.value)
    assert "config.log_directory: " in str(caught.value)


def test_two_ports_on_one_host_port() -> None:
    config = minimal()
    config.port_mappings.add(container_port=80, host_port=8080)
    config.port_mappings.add(container_port=81, host_port=8080, protocol=pb.UDP)
    config.port_mappings.add(container_port=82, host_port=8080, host_ip="127.0.0.1")
    assert len(sandbox.config(config).port_mappings) == 3
    config.port_mappings.add(container_port=83, host_port=8080)
    with pytest.raises(InvalidArgumentError, match=r"port_mappings\[3\].host_port: 8080 is already published"):
        sandbox.config(config)


def test_many_problems_are_cut() -> None:
    config = minimal()
    for _ in range(50):
        config.port_mappings.add()
    with pytest.raises(InvalidArgumentError, match="and 30 more"):
        sandbox.config(config)


def test_filters() -> None:
    assert sandbox.wanted(pb.PodSandboxFilter()) == SandboxFilter()
    message = pb.PodSandboxFilter(
        id="ab", state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY), label_selector={"a": "b"}
    )
    assert sandbox.wanted(message) == SandboxFilter("ab", SandboxState.NOTREADY, {"a": "b"})
    message.state.state = 9  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match=r"filter\.state\.state: must be READY or NOTREADY, is 9"):
        sandbox.wanted(message)
