"""The admission of containers, from protobuf on: a row for each rule, and every problem in one answer."""

from collections.abc import Callable

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError, UnimplementedError
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_container, admit_exec, admit_update
from crishim.problems import Problems
from crishim.request import Metadata, Resources, SandboxConfig
from crishim.server.convert import container

Change = Callable[[pb.ContainerConfig], object]


def minimal() -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="busybox"))


def admit(message: pb.ContainerConfig) -> None:
    problems = Problems()
    admit_container(
        problems, container.config(problems, message), SandboxConfig(Metadata("pod")), Abilities(selinux=True)
    )
    problems.check()


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
    (lambda m: m.ClearField("metadata"), "config.metadata.name: is missing: a container is known by its name"),
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
    (mount(container_path="/a", host_path="/a" * 2048), "config.mounts[0].host_path: must have at most 4095 bytes"),
    (mount(container_path="/" + "\u00e4" * 128, host_path="/a"), "config.mounts[0].container_path: must have at most"),
    (mount(container_path="/a", host_path="b"), "config.mounts[0].host_path: must be an absolute path"),
    (mount(container_path="/a", host_path="/b", image=IMAGE), "config.mounts[0].host_path: must be empty when image"),
    (mount(container_path="/a", host_path="/b", image_sub_path="c"), "config.mounts[0].image_sub_path: needs an image"),
    (mount(container_path="/a", image=IMAGE, image_sub_path="../c"), "config.mounts[0].image_sub_path: must not"),
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
    (limits(cpu_shares=-1), f"{RES}.cpu_shares: must be 2 to 262144, is -1"),
    (limits(cpuset_cpus="0;1"), f"{RES}.cpuset_cpus: must be a list of numbers"),
    (limits(memory_limit_in_bytes=-2), f"{RES}.memory_limit_in_bytes: must be -1 (no limit) or from 0 on, is -2"),
    (limits(memory_limit_in_bytes=(4 << 20) - 1), f"{RES}.memory_limit_in_bytes: must be at least 4194304, which a"),
    (limits(unified={"memory.max": "4096"}), f"{RES}.unified['memory.max']: must be at least 4194304"),
    (limits(unified={"memory.high": "1"}), f"{RES}.unified['memory.high']: must be at least 4194304"),
    (limits(unified={"memory.max": "9" * 5000, "memory.high": "1"}), f"{RES}.unified['memory.high']: must be at least"),
    (limits(memory_swap_limit_in_bytes=-2), f"{RES}.memory_swap_limit_in_bytes: must be -1"),
    (
        limits(memory_limit_in_bytes=9, memory_swap_limit_in_bytes=8),
        f"{RES}.memory_swap_limit_in_bytes: is memory and",
    ),
    (limits(oom_score_adj=1001), f"{RES}.oom_score_adj: must be -1000 to 1000, is 1001"),
    (
        limits(hugepage_limits=[pb.HugepageLimit(limit=1)]),
        f"{RES}.hugepage_limits[0].page_size: must be like 2MB or 1GB, is ''",
    ),
    (limits(unified={"../cgroup.procs": "1"}), f"{RES}.unified['../cgroup.procs']: is no file name"),
    (context(run_as_group=pb.Int64Value(value=1)), f"{SEC}.run_as_group: needs a user"),
    (
        context(run_as_user=pb.Int64Value(value=1), run_as_username="root"),
        f"{SEC}.run_as_username: must be empty when run_as_user is given",
    ),
    (context(namespace_options=pb.NamespaceOption(pid=pb.TARGET)), f"{SEC}.namespace_options.target_id: is missing"),
    (context(namespace_options=pb.NamespaceOption(network=pb.TARGET)), f"{SEC}.namespace_options.network: must be"),
    (context(masked_paths=["proc"]), f"{SEC}.masked_paths[0]: must be an absolute path"),
    (
        context(capabilities=pb.Capability(add_capabilities=[""])),
        f"{SEC}.capabilities.add_capabilities[0]: '' is no capability",
    ),
    (context(apparmor_profile="localhost/"), f"{SEC}.apparmor_profile: must be runtime/default"),
    (merge(log_path="a/"), "config.log_path: must name a file"),
    (merge(log_path="."), "config.log_path: must name a file"),
    (merge(stdin_once=True), "config.stdin_once: needs stdin"),
    (merge(CDI_devices=[pb.CDIDevice(name="a.com/b=c")]), "config.CDI_devices[0].name: not supported yet: CDI devices"),
    (
        merge(devices=[pb.Device(host_path="/d", container_path="/dev/../d")]),
        "config.devices[0].container_path: must be below /dev, is '/dev/../d'",
    ),
    (mount(container_path="//", host_path="/a"), "config.mounts[0].container_path: is the container's root"),
    (mount(container_path="//proc/x", host_path="/a"), "config.mounts[0].container_path: /proc/x: nothing may be"),
    (mount(container_path="/a", image=IMAGE), "config.mounts[0].readonly: must be true when image is given"),
    (
        mount(container_path="/a", image=pb.ImageSpec(image_ref="x"), readonly=True),
        "config.mounts[0].image.image: is missing",
    ),
    (
        mount(container_path="/a", image=IMAGE, readonly=True),
        "config.mounts[0].image: not supported yet: image volumes",
    ),
    (mount(container_path="/a", host_path="/b", propagation=2), "config.mounts[0].propagation: not supported yet"),
    (
        mount(container_path="/a", host_path="/b", readonly=True, recursive_read_only=True),
        "config.mounts[0].recursive_read_only: not supported yet",
    ),
    (
        mount(container_path="/a", host_path="/b", uidMappings=[pb.IDMapping(length=1)]),
        "config.mounts[0].uidMappings: not supported yet: idmapped mounts",
    ),
    (mount(container_path="/a", host_path="/b", mount_options=["noexec"]), "config.mounts[0].mount_options: not"),
    (limits(cpu_quota=1 << 44), f"{RES}.cpu_quota: must be -1"),
    (limits(cpu_period=1_000_001), f"{RES}.cpu_period: must be 1000 to 1000000"),
    (limits(cpuset_cpus="3-1"), f"{RES}.cpuset_cpus: must be a list"),
    (limits(cpuset_cpus="0-"), f"{RES}.cpuset_cpus: must be a list"),
    (limits(cpuset_cpus="\u0663"), f"{RES}.cpuset_cpus: must be a list"),
    (limits(cpuset_mems="9" * 5000), f"{RES}.cpuset_mems: must be a list"),
    (limits(hugepage_limits=[pb.HugepageLimit(page_size="1\u0663MB")]), f"{RES}.hugepage_limits[0].page_size: must"),
    (limits(hugepage_limits=[pb.HugepageLimit(page_size="2mb")]), f"{RES}.hugepage_limits[0].page_size: must"),
    (limits(unified={"cgroup.procs": "1"}), f"{RES}.unified['cgroup.procs']: is no file name"),
    (limits(cpu_shares=1), f"{RES}.cpu_shares: must be 2 to 262144, is 1"),
    (limits(memory_swap_limit_in_bytes=5), f"{RES}.memory_swap_limit_in_bytes: is memory and swap together: give"),
    (limits(unified={"memory.high": "a\0"}), f"{RES}.unified['memory.high']: must not contain a NUL"),
    (context(privileged=True), f"{SEC}.privileged: needs a privileged sandbox"),
    (context(namespace_options=pb.NamespaceOption(network=pb.NODE)), f"{SEC}.namespace_options.network: is NODE, but"),
    (context(capabilities=pb.Capability(drop_capabilities=["CAP_X"])), f"{SEC}.capabilities.drop_capabilities[0]: "),
    (
        context(apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="k8s-x")),
        f"{SEC}.apparmor: profile 'k8s-x' cannot be applied: AppArmor is not enabled",
    ),
    (
        context(selinux_options=pb.SELinuxOption(type="t")),
        f"{SEC}.selinux_options: not supported yet: SELinux labels",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[f"{n}-{message}" for n, (_, message) in enumerate(BAD)])
def test_bad_config_names_the_field(change: Change, message: str) -> None:
    config = minimal()
    change(config)
    with pytest.raises((InvalidArgumentError, UnimplementedError)) as caught:
        admit(config)
    assert message in str(caught.value)


def test_an_apparmor_profile_is_refused_where_it_would_not_be_applied() -> None:
    config = minimal()
    profile = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="k8s-x")
    context(apparmor=profile)(config)
    problems = Problems()
    admit_container(
        problems, container.config(problems, config), SandboxConfig(Metadata("pod")), Abilities(apparmor=True)
    )
    with pytest.raises(
        UnimplementedError, match=r"security_context\.apparmor: not supported yet: profile 'k8s-x'; use"
    ):
        problems.check()


def test_what_is_right_passes() -> None:
    message = minimal()
    for change in (
        limits(memory_limit_in_bytes=-1),
        limits(unified={"memory.max": str(4 << 20), "memory.high": "max"}),
        limits(memory_limit_in_bytes=4 << 20, memory_swap_limit_in_bytes=-1),
        limits(cpu_quota=-1, cpu_period=1000, cpu_shares=2, cpuset_cpus="0-2,7"),
        merge(log_path="a/0.log", stop_signal=pb.SIGNAL_SIGRTMINPLUS3),
        mount(container_path="/processes", host_path="/a"),
        mount(container_path="/proc-a", host_path="/a"),
        context(run_as_username="www-data", run_as_group=pb.Int64Value(value=9)),
        context(capabilities=pb.Capability(add_capabilities=["ALL"], drop_capabilities=["cap_chown"])),
    ):
        change(message)
    admit(message)


def test_form_and_admission_are_told_in_one_answer_in_a_stable_order() -> None:
    message = minimal()
    message.stop_signal = 99  # type: ignore[assignment]
    message.log_path = "../x"
    message.linux.resources.oom_score_adj = 2000
    with pytest.raises(InvalidArgumentError) as caught:
        admit(message)
    fields = [part.partition(": ")[0] for part in str(caught.value).split("; ")]
    assert fields == ["config.stop_signal", "config.log_path", f"{RES}.oom_score_adj"]


@pytest.mark.parametrize(
    ("words", "timeout", "message"),
    [
        ([], 0, "cmd: is missing"),
        ([""], 0, "cmd[0]: must name a program"),
        (["a", "\0"], 0, "cmd[1]: must not contain a NUL"),
        (["a"], -1, "timeout: must be a number of seconds from 0"),
    ],
)
def test_bad_exec_is_refused(words: list[str], timeout: int, message: str) -> None:
    problems = Problems()
    admit_exec(problems, words, timeout)
    with pytest.raises(InvalidArgumentError) as caught:
        problems.check()
    assert message in str(caught.value)


def test_updates_are_judged_like_limits_of_a_start() -> None:
    problems = Problems()
    admit_update(problems, Resources(cpu_period=1))
    with pytest.raises(InvalidArgumentError, match=r"^linux\.cpu_period: must be 1000 to 1000000, is 1$"):
        problems.check()
