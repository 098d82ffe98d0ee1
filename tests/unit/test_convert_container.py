"""Containers from protobuf and back: fields, defaults, and what is refused by its path."""

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.pods.views import ContainerFilter, ContainerState
from crishim.problems import Problems
from crishim.request import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    Device,
    HugepageLimit,
    IdMapping,
    ImageSpec,
    Mount,
    NamespaceMode,
    ProfileType,
    Propagation,
    Resources,
    SecurityProfile,
)
from crishim.server.convert import container, resources
from crishim.server.convert.fields import required


def minimal() -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="busybox"))


def converted(message: pb.ContainerConfig) -> ContainerConfig:
    problems = Problems()
    config = container.config(problems, message)
    problems.check()
    return config


def test_minimal_config_is_all_defaults() -> None:
    assert converted(minimal()) == ContainerConfig(ContainerMetadata("main"), ImageSpec("busybox"))


def test_every_field_arrives() -> None:
    message = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main", attempt=4),
        image=pb.ImageSpec(image="busybox", user_specified_image="bb", image_ref="sha256:x", annotations={"k": "v"}),
        command=["sh"],
        args=["-c", ""],
        working_dir="work",
        envs=[pb.KeyValue(key="A", value=b"\xff="), pb.KeyValue(key="B")],
        mounts=[
            pb.Mount(
                container_path="/data",
                host_path="/srv",
                readonly=True,
                recursive_read_only=True,
                uidMappings=[pb.IDMapping(host_id=1, container_id=0, length=9)],
            ),
            pb.Mount(container_path="/img", image=pb.ImageSpec(image="data"), image_sub_path="a/b", readonly=True),
            pb.Mount(container_path="/csi", host_path="/csi", propagation=pb.PROPAGATION_BIDIRECTIONAL),
        ],
        devices=[
            pb.Device(container_path="/dev/a", host_path="/dev/b", permissions="mr"),
            pb.Device(container_path="/dev/c", host_path="/dev/c"),
        ],
        labels={"l": "1"},
        annotations={"a": "2"},
        log_path="main/0.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=0")],
        stop_signal=pb.SIGNAL_SIGRTMINPLUS3,
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(cpu_quota=-1, oom_score_adj=-997),
            security_context=pb.LinuxContainerSecurityContext(
                capabilities=pb.Capability(
                    add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"], add_ambient_capabilities=["chown"]
                ),
                privileged=True,
                namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="t"),
                run_as_username="www-data",
                run_as_group=pb.Int64Value(value=9),
                no_new_privs=True,
                masked_paths=["/proc/kcore"],
                readonly_paths=["/proc/sys"],
                seccomp_profile_path="localhost/x.json",
                apparmor_profile="unconfined",
            ),
        ),
    )
    config = converted(message)
    assert config.metadata == ContainerMetadata("main", 4)
    assert config.image == ImageSpec("busybox", {"k": "v"}, "bb", "", "sha256:x")
    assert (config.command, config.args, config.working_dir) == (("sh",), ("-c", ""), "work")
    assert config.envs == (("A", b"\xff="), ("B", b""))
    assert config.mounts == (
        Mount("/data", "/srv", readonly=True, recursive_read_only=True, uid_mappings=(IdMapping(1, 0, 9),)),
        Mount("/img", image=ImageSpec("data"), image_sub_path="a/b", readonly=True),
        Mount("/csi", "/csi", propagation=Propagation.BIDIRECTIONAL),
    )
    assert config.devices == (Device("/dev/a", "/dev/b", "mr"), Device("/dev/c", "/dev/c", "rwm"))
    assert (config.labels, config.annotations, config.log_path) == ({"l": "1"}, {"a": "2"}, "main/0.log")
    assert (config.stdin, config.stdin_once, config.tty) == (True, True, True)
    assert (config.cdi_devices, config.stop_signal) == (("vendor.com/gpu=0",), "SIGRTMINPLUS3")
    assert config.resources == Resources(cpu_quota=-1, oom_score_adj=-997)
    security = config.security
    assert security.capabilities == Capabilities(("NET_ADMIN",), ("ALL",), ("chown",))
    assert (security.namespaces.pid, security.namespaces.target_id) == (NamespaceMode.TARGET, "t")
    assert (security.privileged, security.no_new_privs) == (True, True)
    assert (security.run_as_user, security.run_as_group, security.run_as_username) == (None, 9, "www-data")
    assert (security.masked_paths, security.readonly_paths) == (("/proc/kcore",), ("/proc/sys",))
    assert security.seccomp == SecurityProfile(ProfileType.LOCALHOST, "x.json")
    assert security.apparmor == SecurityProfile(ProfileType.UNCONFINED)


def test_new_profile_field_wins_over_the_deprecated_one() -> None:
    message = minimal()
    context = message.linux.security_context
    context.seccomp_profile_path = "unconfined"
    assert converted(message).security.seccomp == SecurityProfile(ProfileType.UNCONFINED)
    context.seccomp.SetInParent()
    assert converted(message).security.seccomp == SecurityProfile(ProfileType.RUNTIME_DEFAULT)


def test_every_signal_of_the_api_survives_both_ways() -> None:
    for value in pb.Signal.DESCRIPTOR.values[1:]:
        message = minimal()
        message.stop_signal = value.number  # type: ignore[assignment]
        name = converted(message).stop_signal
        assert name.startswith("SIG")
        assert container.signal_number(name) == value.number


@pytest.mark.parametrize(("name", "number"), [("", 0), ("SIGNONSENSE", 0), ("SIGRTMIN+3", pb.SIGNAL_SIGRTMINPLUS3)])
def test_signal_names_of_images(name: str, number: int) -> None:
    assert container.signal_number(name) == number


def test_resources_survive_both_ways() -> None:
    given = Resources(
        cpu_period=100_000,
        cpu_quota=50_000,
        cpu_shares=512,
        memory_limit_in_bytes=2**26,
        oom_score_adj=5,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        hugepage_limits=(HugepageLimit("2MB", 4),),
        unified={"memory.high": "max"},
        memory_swap_limit_in_bytes=-1,
    )
    request = pb.UpdateContainerResourcesRequest(container_id="x", linux=resources.to_message(given))
    assert resources.from_update(request) == given


def test_update_wants_something() -> None:
    with pytest.raises(InvalidArgumentError, match="linux: is missing"):
        resources.from_update(pb.UpdateContainerResourcesRequest(container_id="x"))
    assert resources.from_update(pb.UpdateContainerResourcesRequest(annotations={"a": "b"})) == Resources()


def test_filters() -> None:
    message = pb.ContainerFilter(
        id="a", pod_sandbox_id="b", state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED), label_selector={"k": "v"}
    )
    assert container.wanted(message) == ContainerFilter("a", "b", ContainerState.EXITED, {"k": "v"})
    assert container.wanted(pb.ContainerFilter()) == ContainerFilter()
    message.state.state = 4  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match=r"filter\.state\.state: must be CREATED or .*, is 4"):
        container.wanted(message)


def test_required_fields() -> None:
    with pytest.raises(InvalidArgumentError, match="container_id: is missing"):
        required(pb.StopContainerRequest(), "container_id")
    with pytest.raises(InvalidArgumentError, match="config: is missing"):
        required(pb.CreateContainerRequest(), "config")
