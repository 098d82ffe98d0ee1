"""Containers from protobuf and back: fields, defaults, and what is refused by its path."""

from collections.abc import Callable

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import (
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
from crishim.errors import InvalidArgumentError
from crishim.pods.views import ContainerFilter, ContainerState, ExecResult
from crishim.server.convert import container, resources
from crishim.server.convert.fields import required, seconds

Change = Callable[[pb.ContainerConfig], object]


def minimal() -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="busybox"))


def test_minimal_config_is_all_defaults() -> None:
    assert container.config(minimal()) == ContainerConfig(ContainerMetadata("main"), ImageSpec("busybox"))


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
    config = container.config(message)
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
    assert container.config(message).security.seccomp == SecurityProfile(ProfileType.UNCONFINED)
    context.seccomp.SetInParent()
    assert container.config(message).security.seccomp == SecurityProfile(ProfileType.RUNTIME_DEFAULT)


def mount(**fields: object) -> Change:
    return lambda message: message.mounts.append(pb.Mount(**fields))  # type: ignore[arg-type]


def limits(**fields: object) -> Change:
    return lambda message: message.linux.resources.MergeFrom(pb.LinuxContainerResources(**fields))  # type: ignore[arg-type]


def context(**fields: object) -> Change:
    given = pb.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]
    return lambda message: message.linux.security_context.MergeFrom(given)


def merge(**fields: object) -> Change:
    return lambda message: message.MergeFrom(pb.ContainerConfig(**fields))  # type: ignore[arg-type]


IMAGE = pb.ImageSpec(image="x")
RES = "config.linux.resources"
SEC = "config.linux.security_context"
BAD: list[tuple[Change, str]] = [
    (lambda m: m.ClearField("metadata"), "config.metadata: is missing"),
    (lambda m: m.metadata.ClearField("name"), "config.metadata.name: is missing"),
    (lambda m: m.ClearField("image"), "config.image.image: is missing"),
    (merge(command=["a\0b"]), "config.command[0]: must not contain a NUL"),
    (merge(envs=[pb.KeyValue(key="")]), "config.envs[0].key: is missing"),
    (merge(envs=[pb.KeyValue(key="a=b")]), "config.envs[0].key: must not contain '='"),
    (merge(envs=[pb.KeyValue(key="a", value=b"\0")]), "config.envs[0].value: must not contain a NUL"),
    (merge(log_path="/etc/passwd"), "config.log_path: must be a relative path"),
    (merge(log_path="../../x"), "config.log_path: must not contain '..'"),
    (merge(log_path="a/../../x"), "config.log_path: must not contain '..'"),
    (merge(stop_signal=99), "config.stop_signal: must be a value of the enum Signal, is 99"),
    (merge(CDI_devices=[pb.CDIDevice()]), "config.CDI_devices[0].name: is missing"),
    (merge(devices=[pb.Device(host_path="/dev/x")]), "config.devices[0].container_path: is missing"),
    (merge(devices=[pb.Device(host_path="/d", container_path="x")]), "config.devices[0].container_path: must be an"),
    (
        merge(devices=[pb.Device(host_path="/d", container_path="/d", permissions="rx")]),
        "config.devices[0].permissions: must be some of r, w and m, is 'rx'",
    ),
    (mount(host_path="/a"), "config.mounts[0].container_path: is missing"),
    (mount(container_path="a", host_path="/a"), "config.mounts[0].container_path: must be an absolute path"),
    (mount(container_path="/a"), "config.mounts[0].host_path: is missing"),
    (mount(container_path="/a", host_path="b"), "config.mounts[0].host_path: must be an absolute path"),
    (mount(container_path="/a", host_path="/b", image=IMAGE), "config.mounts[0].host_path: must be empty when image"),
    (mount(container_path="/a", host_path="/b", image_sub_path="c"), "config.mounts[0].image_sub_path: needs an image"),
    (
        mount(container_path="/a", image=IMAGE, image_sub_path="../c", readonly=True),
        "config.mounts[0].image_sub_path: must not",
    ),
    (mount(container_path="/a", image=IMAGE), "config.mounts[0].readonly: must be true when image is given"),
    (
        mount(container_path="/a", image=pb.ImageSpec(image_ref="x"), readonly=True),
        "config.mounts[0].image.image: is missing",
    ),
    (mount(container_path="/a", host_path="/b", propagation=3), "config.mounts[0].propagation: must be PRIVATE or"),
    (mount(container_path="/a", host_path="/b", recursive_read_only=True), "recursive_read_only: needs readonly"),
    (
        mount(container_path="/a", host_path="/b", readonly=True, recursive_read_only=True, propagation=1),
        "config.mounts[0].recursive_read_only: needs propagation PRIVATE, is HOST_TO_CONTAINER",
    ),
    (
        mount(container_path="/a", host_path="/b", uidMappings=[pb.IDMapping(length=0)]),
        "config.mounts[0].uidMappings[0].length: must be at least 1",
    ),
    (
        mount(container_path="/a", host_path="/b", gidMappings=[pb.IDMapping(host_id=2**32 - 1, length=1)]),
        "config.mounts[0].gidMappings[0].length: reaches beyond",
    ),
    (limits(cpu_period=999), f"{RES}.cpu_period: must be 1000 to 1000000, is 999"),
    (limits(cpu_quota=-2), f"{RES}.cpu_quota: must be -1"),
    (limits(cpu_quota=999), f"{RES}.cpu_quota: must be -1"),
    (limits(cpu_shares=-1), f"{RES}.cpu_shares: must not be negative"),
    (limits(cpuset_cpus="0;1"), f"{RES}.cpuset_cpus: must be a list of numbers"),
    (limits(memory_limit_in_bytes=-1), f"{RES}.memory_limit_in_bytes: must not be negative, is -1"),
    (limits(memory_swap_limit_in_bytes=-2), f"{RES}.memory_swap_limit_in_bytes: must be -1"),
    (limits(memory_limit_in_bytes=9, memory_swap_limit_in_bytes=8), f"{RES}.memory_swap_limit_in_bytes: is memory and"),
    (limits(oom_score_adj=1001), f"{RES}.oom_score_adj: must be -1000 to 1000, is 1001"),
    (limits(hugepage_limits=[pb.HugepageLimit(limit=1)]), f"{RES}.hugepage_limits[0].page_size: is missing"),
    (limits(unified={"../cgroup.procs": "1"}), f"{RES}.unified: keys name files"),
    (context(run_as_group=pb.Int64Value(value=1)), f"{SEC}.run_as_group: needs a user"),
    (
        context(run_as_user=pb.Int64Value(value=1), run_as_username="root"),
        f"{SEC}.run_as_username: must be empty when run_as_user is given",
    ),
    (context(namespace_options=pb.NamespaceOption(pid=pb.TARGET)), f"{SEC}.namespace_options.target_id: is missing"),
    (context(namespace_options=pb.NamespaceOption(network=pb.TARGET)), f"{SEC}.namespace_options.network: must be"),
    (context(masked_paths=["proc"]), f"{SEC}.masked_paths[0]: must be an absolute path"),
    (context(capabilities=pb.Capability(add_capabilities=[""])), f"{SEC}.capabilities.add_capabilities[0]: is missing"),
    (context(apparmor_profile="localhost/"), f"{SEC}.apparmor_profile: must be runtime/default"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[f"{n}-{message}" for n, (_, message) in enumerate(BAD)])
def test_bad_config_names_the_field(change: Change, message: str) -> None:
    config = minimal()
    change(config)
    with pytest.raises(InvalidArgumentError) as caught:
        container.config(config)
    assert message in str(caught.value)


def test_every_signal_of_the_api_survives_both_ways() -> None:
    for value in pb.Signal.DESCRIPTOR.values[1:]:
        message = minimal()
        message.stop_signal = value.number  # type: ignore[assignment]
        name = container.config(message).stop_signal
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


def test_exec_command() -> None:
    assert container.command(["sh", ""]) == ("sh", "")
    for words, message in (([], "cmd: is missing"), ([""], r"cmd\[0\]: must name a program"), (["a", "\0"], "NUL")):
        with pytest.raises(InvalidArgumentError, match=message):
            container.command(words)


@pytest.mark.parametrize(("out", "err"), [(20, 20), (20, 1), (1, 20), (17, 0), (9, 7.9)])
def test_exec_output_is_cut_to_one_message(out: float, err: float) -> None:
    mib = 1024 * 1024
    answer = container.exec_answer(ExecResult(b"o" * int(out * mib), b"e" * int(err * mib), 7))
    assert answer.exit_code == 7
    assert len(answer.SerializeToString()) <= 16 * mib
    assert len(answer.stdout) >= min(out * mib, 8 * mib - 4096)
    assert len(answer.stderr) >= min(int(err * mib), 8 * mib - 4096)


def test_filters() -> None:
    message = pb.ContainerFilter(
        id="a", pod_sandbox_id="b", state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED), label_selector={"k": "v"}
    )
    assert container.wanted(message) == ContainerFilter("a", "b", ContainerState.EXITED, {"k": "v"})
    assert container.wanted(pb.ContainerFilter()) == ContainerFilter()
    message.state.state = 4  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match=r"filter\.state\.state: must be CREATED or .*, is 4"):
        container.wanted(message)


def test_required_and_seconds() -> None:
    with pytest.raises(InvalidArgumentError, match="container_id: is missing"):
        required(pb.StopContainerRequest(), "container_id")
    with pytest.raises(InvalidArgumentError, match="config: is missing"):
        required(pb.CreateContainerRequest(), "config")
    with pytest.raises(InvalidArgumentError, match="timeout: must be a number of seconds from 0 on, is -1"):
        seconds(pb.StopContainerRequest(timeout=-1), "timeout")
