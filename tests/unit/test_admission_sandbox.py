"""The admission of sandboxes, from protobuf on: a row for each rule, and every problem in one answer."""

from collections.abc import Callable

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError, UnimplementedError
from crishim.pods.admission import sysctls
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_sandbox
from crishim.problems import Problems
from crishim.request import Metadata, NamespaceMode, NamespaceOptions, SandboxConfig, SandboxSecurity
from crishim.server.convert import sandbox

Change = Callable[[pb.PodSandboxConfig], object]


def minimal() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="ns"))


def admit(message: pb.PodSandboxConfig, handler: str = "") -> None:
    problems = Problems()
    admit_sandbox(problems, sandbox.config(problems, message), handler, Abilities(handlers=("test-handler",)))
    problems.check()


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
    (lambda m: m.ClearField("metadata"), "config.metadata.name: is missing: a sandbox is known by its name"),
    (set_field("metadata.name", ""), "config.metadata.name: is missing"),
    (set_field("metadata.uid", "a\0b"), "config.metadata.uid: must not contain a NUL"),
    (set_field("hostname", "h" * 65), "config.hostname: must be 1 to 64 letters"),
    (set_field("hostname", "a\nb"), "config.hostname: must be 1 to 64 letters"),
    (set_field("hostname", "-a"), "config.hostname: must be 1 to 64 letters"),
    (set_field("log_directory", "logs"), "config.log_directory: must be an absolute path"),
    (set_field("log_directory", "/var/log/../../etc"), "config.log_directory: must not contain '..'"),
    (set_field("linux.cgroup_parent", "/a\nb"), "config.linux.cgroup_parent: must not contain control characters"),
    (set_field("linux.cgroup_parent", "/a" * 2100), "config.linux.cgroup_parent: must have at most 4095 bytes"),
    (set_field("log_directory", "/" + "a" * 256), "config.log_directory: must have at most 4095 bytes, and 255 in"),
    (set_field("linux.cgroup_parent", "/a/../.."), "config.linux.cgroup_parent: must not contain '..'"),
    (lambda m: m.dns_config.servers.append("1.1.1.1\nsearch evil"), "config.dns_config.servers[0]: must be one word"),
    (port(container_port=0), "config.port_mappings[0].container_port: must be 1 to 65535, is 0"),
    (port(container_port=80, host_port=70000), "config.port_mappings[0].host_port: must be 0 to 65535"),
    (port(container_port=80, host_port=-1), "config.port_mappings[0].host_port: must be 0 to 65535, is -1"),
    (port(container_port=80, host_ip="localhost"), "config.port_mappings[0].host_ip: must be an IP address"),
    (port(container_port=80, protocol=9), "config.port_mappings[0].protocol: must be TCP or UDP or SCTP, is 9"),
    (set_field("linux.resources.cpu_period", -5), "config.linux.resources.cpu_period: must be 1000 to 1000000"),
    (set_field("linux.overhead.memory_limit_in_bytes", -5), "config.linux.overhead.memory_limit_in_bytes: must be -1"),
    (
        set_field(f"{BASE[7:]}.namespace_options.network", pb.CONTAINER),
        f"{BASE}.namespace_options.network: must be POD",
    ),
    (
        set_field(f"{BASE[7:]}.namespace_options.pid", pb.TARGET),
        f"{BASE}.namespace_options.pid: must be POD, CONTAINER or NODE",
    ),
    (
        set_field(f"{BASE[7:]}.namespace_options.ipc", 17),
        f"{BASE}.namespace_options.ipc: must be POD or CONTAINER or NODE or TARGET, is 17",
    ),
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
    (userns(pb.POD, 0), f"{BASE}.namespace_options.userns_options: not supported yet: user namespaces"),
    (
        set_field(f"{BASE[7:]}.apparmor.profile_type", 2),
        f"{BASE}.apparmor.localhost_ref: is missing",
    ),
    (lambda m: m.linux.sysctls.update({"vm.swappiness": "1"}), "config.linux.sysctls['vm.swappiness']: is not kept"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_config_names_the_field(change: Change, message: str) -> None:
    config = minimal()
    change(config)
    with pytest.raises((InvalidArgumentError, UnimplementedError)) as caught:
        admit(config)
    assert message in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    config = minimal()
    config.hostname = "h" * 65
    config.log_directory = "x"
    with pytest.raises(InvalidArgumentError) as caught:
        admit(config)
    assert "config.hostname: " in str(caught.value)
    assert "config.log_directory: " in str(caught.value)


def test_two_ports_on_one_host_port() -> None:
    config = minimal()
    config.port_mappings.add(container_port=80, host_port=8080)
    config.port_mappings.add(container_port=81, host_port=8080, protocol=pb.UDP)
    config.port_mappings.add(container_port=82, host_port=8080, host_ip="127.0.0.1")
    admit(config)
    config.port_mappings.add(container_port=83, host_port=8080)
    with pytest.raises(InvalidArgumentError, match=r"port_mappings\[3\].host_port: 8080 is already published"):
        admit(config)


def test_many_problems_are_cut() -> None:
    config = minimal()
    for _ in range(50):
        config.port_mappings.add()
    with pytest.raises(InvalidArgumentError, match="and 30 more"):
        admit(config)


def test_unknown_handler_is_refused() -> None:
    admit(minimal(), "test-handler")
    with pytest.raises(InvalidArgumentError, match="runtime_handler: 'kata' is not configured: give an empty name"):
        admit(minimal(), "kata")


def test_profiles_that_need_nothing_are_fine() -> None:
    for kind in (pb.SecurityProfile.RuntimeDefault, pb.SecurityProfile.Unconfined):
        config = minimal()
        context(config).apparmor.profile_type = kind
        admit(config)


def test_an_apparmor_profile_is_refused_where_it_would_not_be_applied() -> None:
    config = minimal()
    context(config).apparmor.profile_type = pb.SecurityProfile.Localhost
    context(config).apparmor.localhost_ref = "k8s-x"
    problems = Problems()
    admit_sandbox(problems, sandbox.config(problems, config), "", Abilities(apparmor=True))
    with pytest.raises(
        UnimplementedError, match=r"security_context\.apparmor: not supported yet: profile 'k8s-x'; use"
    ):
        problems.check()


@pytest.mark.parametrize(
    ("key", "value", "options", "problem"),
    [
        ("net.ipv4.ip_forward", "1", NamespaceOptions(), ""),
        ("net/ipv4/conf/eth0.1/rp_filter", "1", NamespaceOptions(), ""),
        ("kernel.shm_rmid_forced", "1", NamespaceOptions(), ""),
        ("fs.mqueue.msg_max", "100", NamespaceOptions(), ""),
        ("net.ipv4.tcp_rmem", "4096\t131072 6291456", NamespaceOptions(), ""),
        ("net.ipv4.ip_forward", "1", NamespaceOptions(network=NamespaceMode.NODE), "the host's network"),
        ("kernel.shmmax", "1", NamespaceOptions(ipc=NamespaceMode.NODE), "the host's IPC namespace"),
        ("fs.mqueue.msg_max", "1", NamespaceOptions(ipc=NamespaceMode.NODE), "the host's IPC namespace"),
        ("vm.swappiness", "1", NamespaceOptions(), "not kept per namespace"),
        ("kernel.core_pattern", "|/x", NamespaceOptions(), "not kept per namespace"),
        ("kernel.hostname", "x", NamespaceOptions(), "use the pod's hostname"),
        ("net", "1", NamespaceOptions(), "is no sysctl key"),
        ("net/../kernel/core_pattern", "1", NamespaceOptions(), "is no sysctl key"),
        ("net.ipv4..x", "1", NamespaceOptions(), "is no sysctl key"),
        ("net.ipv4.ip_forward+kernel.core_pattern", "1", NamespaceOptions(), "is no sysctl key"),
        ("net.ipv4.ip_forward", "1\n2", NamespaceOptions(), "control character"),
    ],
)
def test_sysctls(key: str, value: str, options: NamespaceOptions, problem: str) -> None:
    problems = Problems()
    sysctls.sandbox(
        problems,
        SandboxConfig(Metadata("pod"), sysctls={key: value}, security=SandboxSecurity(namespaces=options)),
    )
    if not problem:
        problems.check()
        return
    with pytest.raises(InvalidArgumentError) as caught:
        problems.check()
    assert (caught.value.field, problem in caught.value.problem) == (f"config.linux.sysctls[{key!r}]", True)


@pytest.mark.parametrize("good", ["", "a", "web-0", "Web.svc.local", "x" * 64])
def test_good_hostnames(good: str) -> None:
    config = minimal()
    config.hostname = good
    admit(config)


@pytest.mark.parametrize("bad", ["-a", "a-", "a b", "a\nb", "x" * 65, "über", "a_b", "."])
def test_bad_hostnames(bad: str) -> None:
    config = minimal()
    config.hostname = bad
    with pytest.raises(InvalidArgumentError, match=r"^config\.hostname: must be 1 to 64 letters"):
        admit(config)


@pytest.mark.parametrize(("field", "value"), [("servers", "a\nb"), ("searches", "two words"), ("options", "")])
def test_a_value_cannot_start_a_line_of_resolv_conf(field: str, value: str) -> None:
    config = minimal()
    getattr(config.dns_config, field).extend(["ok", value])
    with pytest.raises(InvalidArgumentError, match=rf"^config\.dns_config\.{field}\[1\]: must be one word"):
        admit(config)
