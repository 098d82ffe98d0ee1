"""Views, statistics and images as CRI messages."""

import dataclasses

import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.images.model import Credentials, FsUsage, Image
from crishim.pods.views import ContainerState, ContainerStats, IoStats, Pressure, Psi, SwapStats
from crishim.request import (
    IdMapping,
    ImageConfig,
    ImageSpec,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    Propagation,
    ResolvedUser,
    Resources,
    UserNamespace,
)
from crishim.server.convert import image, runtime, stats, status
from crishim.server.convert.rows import MAX_KEPT, Rows, varint
from tests.fakes.cri_backend import (
    IMAGE,
    IMAGE_ID,
    NOW,
    FakeCondition,
    container_stats,
    container_view,
    sandbox_stats,
    sandbox_view,
)


def test_sandbox_status() -> None:
    mapping = (IdMapping(1000, 0, 5),)
    options = NamespaceOptions(network=NamespaceMode.NODE, userns=UserNamespace(NamespaceMode.POD, mapping, mapping))
    view = dataclasses.replace(sandbox_view(7), namespaces=options)
    message = status.sandbox_status(view)
    assert message.id == view.id
    assert (message.metadata.name, message.metadata.uid, message.metadata.attempt) == ("pod-7", "uid-7", 1)
    assert message.state == pb.SANDBOX_READY
    assert message.created_at == NOW + 7
    assert (message.network.ip, [item.ip for item in message.network.additional_ips]) == ("10.0.0.7", ["fd00::1"])
    assert message.linux.namespaces.options.network == pb.NODE
    assert message.linux.namespaces.options.userns_options.uids[0].host_id == 1000
    assert dict(message.labels) == {"app": "web", "number": "7"}


def test_sandbox_of_the_host_network_has_no_address() -> None:
    message = status.sandbox_status(dataclasses.replace(sandbox_view(1), ips=()))
    assert message.HasField("network")
    assert message.network.ip == ""


def test_container_status() -> None:
    mount = Mount("/a", "/b", readonly=True, propagation=Propagation.HOST_TO_CONTAINER)
    view = container_view(3, ContainerState.EXITED)
    view = dataclasses.replace(
        view,
        finished_at=NOW + 9,
        exit_code=137,
        reason="OOMKilled",
        message="odd path \udcff",
        log_path="/var/log/x.log",
        config=dataclasses.replace(view.config, mounts=(mount,)),
        resources=Resources(memory_limit_in_bytes=5),
        user=ResolvedUser(0, 1, (1, 2)),
        stop_signal="SIGQUIT",
    )
    message = status.container_status(view)
    assert message.state == pb.CONTAINER_EXITED
    assert (message.created_at, message.started_at, message.finished_at) == (NOW + 3, NOW + 4, NOW + 9)
    assert (message.exit_code, message.reason, message.message) == (137, "OOMKilled", "odd path \\xff")
    assert (message.image.image, message.image_ref, message.image_id) == (
        "docker.io/library/busybox:latest",
        IMAGE.repo_digests[0],
        IMAGE_ID,
    )
    assert dict(message.labels) == {"tier": "front"}
    assert message.mounts[0].propagation == pb.PROPAGATION_HOST_TO_CONTAINER
    assert (message.mounts[0].container_path, message.mounts[0].host_path, message.mounts[0].readonly) == (
        "/a",
        "/b",
        True,
    )
    assert not message.mounts[0].HasField("image")
    assert message.resources.linux.memory_limit_in_bytes == 5
    assert (message.user.linux.uid, message.user.linux.gid, list(message.user.linux.supplemental_groups)) == (
        0,
        1,
        [1, 2],
    )
    assert message.stop_signal == pb.SIGNAL_SIGQUIT
    assert message.SerializeToString()


def test_container_that_never_ran_has_neither_user_nor_resources() -> None:
    message = status.container_status(container_view(1, ContainerState.CREATED))
    assert not message.HasField("user")
    assert not message.HasField("resources")


def test_rows_equal_what_protobuf_encodes() -> None:
    views = [container_view(n) for n in range(200)]
    rows = Rows(status.container_row)
    wanted = pb.ListContainersResponse(containers=[status.container_row(view) for view in views])
    for _ in range(2):
        assert pb.ListContainersResponse.FromString(b"".join(rows.rows(views, whole=True))) == wanted
    assert b"".join(rows.rows([], whole=False)) == b""


def test_rows_notice_a_change_and_forget_what_is_gone() -> None:
    made: list[str] = []

    def convert(view: object) -> pb.Container:
        made.append("x")
        return status.container_row(view)  # type: ignore[arg-type]

    rows = Rows(convert)
    views = [container_view(n) for n in range(3)]
    list(rows.rows(views, whole=True))
    list(rows.rows([container_view(n) for n in range(3)], whole=True))  # equal, not the same
    assert len(made) == 3
    changed = dataclasses.replace(views[1], state=ContainerState.EXITED)
    answer = pb.ListContainersResponse.FromString(b"".join(rows.rows([views[0], changed], whole=True)))
    assert [item.state for item in answer.containers] == [pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED]
    assert len(made) == 4
    list(rows.rows([views[2]], whole=False))
    assert len(made) == 5  # the whole list had not shown it, so its row was dropped


def test_rows_are_bounded_without_whole_lists() -> None:
    rows = Rows(status.container_row)
    for n in range(MAX_KEPT + 5):
        list(rows.rows([container_view(n)], whole=False))
    assert len(rows._kept) <= MAX_KEPT


@pytest.mark.parametrize(("number", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_varint(number: int, data: bytes) -> None:
    assert varint(number) == data


def test_sandbox_stats_are_one_message() -> None:
    encoder = stats.StatsEncoder()
    views = [container_view(5), container_view(6)]
    for _ in range(2):
        data = b"".join(encoder.sandboxes([sandbox_stats(sandbox_view(5), views)], whole=True))
    (message,) = pb.ListPodSandboxStatsResponse.FromString(data).stats
    assert message.attributes.metadata.name == "pod-5"
    assert dict(message.attributes.annotations) == {"note": "a b"}
    linux = message.linux
    assert linux.cpu.usage_core_nano_seconds.value == 6_000_000_000
    assert not linux.cpu.HasField("usage_nano_cores")
    assert not linux.memory.HasField("available_bytes")
    assert (linux.network.default_interface.name, [item.name for item in linux.network.interfaces]) == (
        "eth0",
        ["eth1"],
    )
    assert linux.network.default_interface.tx_errors.value == 1
    assert linux.process.process_count.value == 4
    assert not linux.HasField("io")
    assert [item.attributes.id for item in linux.containers] == [view.id for view in views]
    inner = linux.containers[0]
    assert inner.attributes.metadata.attempt == 2
    assert inner.cpu.usage_nano_cores.value == 1_500_000
    assert inner.memory.working_set_bytes.value == 1_000_000
    assert inner.memory.available_bytes.value == 9_000_000
    assert (inner.writable_layer.fs_id.mountpoint, inner.writable_layer.inodes_used.value) == ("/", 3)


def test_stats_of_an_exited_container_hold_the_layer_only() -> None:
    full = container_stats(container_view(1))
    data = stats.StatsEncoder().container_answer(ContainerStats(full.view, None, None, full.writable_layer, None, None))
    message = pb.ContainerStatsResponse.FromString(data).stats
    assert {field.name for field, _ in message.ListFields()} == {"attributes", "writable_layer"}


def test_stats_with_pressure_and_swap() -> None:
    pressure = Pressure(Psi(1, 0.5, 0.25, 0.125), Psi(2, 1.5, 1.25, 1.125))
    full = container_stats(container_view(1))
    given = dataclasses.replace(full, swap=SwapStats(NOW, 10, 90), io=IoStats(NOW, pressure))
    message = pb.ContainerStatsResponse.FromString(stats.StatsEncoder().container_answer(given)).stats
    assert (message.swap.swap_usage_bytes.value, message.swap.swap_available_bytes.value) == (10, 90)
    assert (message.io.psi.Some.Total, message.io.psi.Full.Avg10) == (1, 1.5)


def test_a_counter_below_zero_does_not_break_the_answer() -> None:
    full = container_stats(container_view(1))
    assert full.memory is not None
    given = dataclasses.replace(full, memory=dataclasses.replace(full.memory, available_bytes=-5))
    message = pb.ContainerStatsResponse.FromString(stats.StatsEncoder().container_answer(given)).stats
    assert message.memory.available_bytes.value == 0


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""),
        ("1002", 1002, ""),
        ("0", 0, ""),
        ("www-data", None, "www-data"),
        ("1003:1004", 1003, ""),
        ("www-data:1004", None, "www-data"),
        ("99999999999999999999", None, "99999999999999999999"),
        ("٣", None, "٣"),
    ],
)
def test_image_user(user: str, uid: int | None, name: str) -> None:
    message = image.row(Image("sha256:x", (), ImageConfig(user=user), 1))
    assert (message.uid.value if message.HasField("uid") else None, message.username) == (uid, name)


def test_image_row() -> None:
    given = Image(
        "sha256:x", (), ImageConfig(), 5, repo_tags=("a:1",), repo_digests=("a@sha256:y",), pinned=True,
        annotations={"k": "v"},
    )  # fmt: skip
    message = image.row(given)
    assert (message.id, message.size, message.pinned) == ("sha256:x", 5, True)
    assert (list(message.repo_tags), list(message.repo_digests)) == (["a:1"], ["a@sha256:y"])
    assert (message.spec.image, dict(message.spec.annotations)) == ("a:1", {"k": "v"})
    assert image.row(dataclasses.replace(given, repo_tags=())).spec.image == "a@sha256:y"
    assert image.row(dataclasses.replace(given, repo_tags=(), repo_digests=())).spec.image == "sha256:x"


def test_credentials() -> None:
    assert image.credentials(pb.PullImageRequest()) is None
    assert image.credentials(pb.PullImageRequest(auth=pb.AuthConfig(server_address="r"))) is None
    auth = pb.AuthConfig(username="u", password="p", server_address="r")
    assert image.credentials(pb.PullImageRequest(auth=auth)) == Credentials("u", "p", "", "r")
    auth = pb.AuthConfig(auth="dTpw", identity_token="i", registry_token="t")
    assert image.credentials(pb.PullImageRequest(auth=auth)) == Credentials("", "", "dTpw", "", "i", "t")


def test_file_system_usage() -> None:
    message = image.fs_usage(FsUsage("/var/lib/crishim", 7, 8, NOW))
    assert (message.fs_id.mountpoint, message.used_bytes.value, message.inodes_used.value, message.timestamp) == (
        "/var/lib/crishim",
        7,
        8,
        NOW,
    )


def test_runtime() -> None:
    version = runtime.version()
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "crishim", "v1")
    assert len(version.runtime_version.split(".")) == 3
    assert runtime.runtime_config("cgroupfs").linux.cgroup_driver == pb.CGROUPFS
    assert runtime.runtime_config("systemd").linux.cgroup_driver == pb.SYSTEMD
    message = runtime.status([FakeCondition("RuntimeReady", True, "R", "m")], ["", "x"], {"config": "{}"})
    assert (message.status.conditions[0].type, message.status.conditions[0].status) == ("RuntimeReady", True)
    assert dict(message.info) == {"config": "{}"}
    assert [handler.name for handler in message.runtime_handlers] == ["", "x"]
    assert all(handler.HasField("features") for handler in message.runtime_handlers)
    assert message.features.supplemental_groups_policy
    assert not message.features.mount_options


def test_image_spec_annotations_survive() -> None:
    view = dataclasses.replace(container_view(1), image=ImageSpec("x", {"a": "b"}, "y", "h", "r"))
    message = status.container_row(view).image
    assert (message.image, dict(message.annotations), message.user_specified_image) == ("x", {"a": "b"}, "y")
    assert (message.runtime_handler, message.image_ref) == ("h", "r")
