"""The real grpc server on a real socket, with a runtime and images that need no kernel behind it."""

import asyncio
import dataclasses
import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from structlog.contextvars import get_contextvars

from crishim import errors
from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim._proto.runtime.v1 import api_pb2_grpc as rpc
from crishim.constants import MESSAGE_BYTES
from crishim.images.model import Credentials
from crishim.request import Metadata, Resources
from crishim.server.calls import Call
from crishim.server.errors import Refusal
from crishim.server.image_service import ImageService
from crishim.server.interceptors import intercept
from crishim.server.methods import snake
from crishim.server.runtime_service import RuntimeService
from crishim.server.service import Server
from crishim.server.unimplemented import SENTENCES
from tests.fakes.cri_backend import (
    IMAGE_ID,
    NOW,
    FakeImages,
    FakeObserver,
    FakeRuntime,
    container_view,
    sandbox_view,
)

SIZES = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
CODE = grpc.StatusCode


async def raw(
    channel: grpc.aio.Channel, path: str, request: bytes, *, streaming: bool = False, timeout: float = 20
) -> bytes:
    if not streaming:
        unary = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = await unary(request, timeout=timeout)
        return answer
    stream = channel.unary_stream(path, request_serializer=bytes, response_deserializer=bytes)
    return b"".join([part async for part in stream(request, timeout=timeout)])


class World:
    """A server with its fakes and two stubs."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "run" / "cri.sock")
        self.runtime = FakeRuntime([sandbox_view(n) for n in (1, 2)], [container_view(n) for n in (1, 2)])
        self.images = FakeImages()
        self.observer = FakeObserver()
        self.server = Server(self.runtime, self.images, self.path, self.observer)
        self.channel: grpc.aio.Channel

    @property
    def cri(self) -> "rpc.RuntimeServiceAsyncStub":
        return rpc.RuntimeServiceStub(self.channel)

    @property
    def img(self) -> "rpc.ImageServiceAsyncStub":
        return rpc.ImageServiceStub(self.channel)

    async def error(self, method: str, request: Any, timeout: float = 20) -> grpc.aio.AioRpcError:
        service = "ImageService" if method in IMAGE_METHODS else "RuntimeService"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(self.channel, f"/runtime.v1.{service}/{method}", request.SerializeToString(), timeout=timeout)
        return caught.value


IMAGE_METHODS = {method.name for method in pb.DESCRIPTOR.services_by_name["ImageService"].methods}


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[World]:
    world = World(path)
    await world.server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{world.path}", options=SIZES) as world.channel:
            yield world
    finally:
        await world.server.stop(0)


async def test_socket_and_directory_modes(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        mode = os.stat(world.path)
        assert stat.S_ISSOCK(mode.st_mode)
        assert stat.S_IMODE(mode.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(world.path)).st_mode) == 0o700
    assert not os.path.exists(world.path)


async def test_the_umask_is_put_back(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        async with serving(tmp_path):
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


async def test_version_and_authority_localhost(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        options = [("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(f"unix:{world.path}", options=options) as channel:
            answer = await rpc.RuntimeServiceStub(channel).Version(pb.VersionRequest())
        assert (answer.version, answer.runtime_name, answer.runtime_api_version) == ("0.1.0", "crishim", "v1")


async def test_status_is_verbose_on_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        plain = await world.cri.Status(pb.StatusRequest())
        verbose = await world.cri.Status(pb.StatusRequest(verbose=True))
        assert [item.status for item in plain.status.conditions] == [True, False]
        assert plain.status.conditions[1].reason == "NoBridge"
        assert not plain.info
        assert "stateDir" in verbose.info["config"]
        config = await world.cri.RuntimeConfig(pb.RuntimeConfigRequest())
        assert config.linux.cgroup_driver == pb.CGROUPFS


async def test_the_pod_cidr_goes_through(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        network = pb.NetworkConfig(pod_cidr="10.9.0.0/24,fd00::/64")
        for config in (pb.RuntimeConfig(network_config=network), pb.RuntimeConfig()):
            await world.cri.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config))
        assert world.runtime.calls == [("update_pod_cidr", "10.9.0.0/24,fd00::/64"), ("update_pod_cidr", "")]


async def test_life_of_a_pod(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        sandbox = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", uid="u", namespace="n"))
        made = await world.cri.RunPodSandbox(pb.RunPodSandboxRequest(config=sandbox))
        assert made.pod_sandbox_id == "f" * 64
        config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="i"))
        request = pb.CreateContainerRequest(pod_sandbox_id="p", config=config, sandbox_config=sandbox)
        assert (await world.cri.CreateContainer(request)).container_id == "e" * 64
        await world.cri.StartContainer(pb.StartContainerRequest(container_id="c"))
        await world.cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id="c"))
        limits = pb.LinuxContainerResources(cpu_shares=9)
        update = pb.UpdateContainerResourcesRequest(container_id="c", linux=limits, annotations={"a": "b"})
        await world.cri.UpdateContainerResources(update)
        ran = await world.cri.ExecSync(pb.ExecSyncRequest(container_id="c", cmd=["a", "b"], timeout=3))
        assert (ran.stdout, ran.stderr, ran.exit_code) == (b"out", b"err", 3)
        await world.cri.StopContainer(pb.StopContainerRequest(container_id="c", timeout=5))
        await world.cri.RemoveContainer(pb.RemoveContainerRequest(container_id="c"))
        await world.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="p"))
        await world.cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="p"))
        calls = world.runtime.calls
        assert [call[0] for call in calls] == [
            "run_sandbox",
            "create_container",
            "start_container",
            "reopen_log",
            "update_container",
            "exec_sync",
            "stop_container",
            "remove_container",
            "stop_sandbox",
            "remove_sandbox",
        ]
        assert calls[1][3] == Metadata("a", "u", "n")
        assert calls[4] == ("update_container", "c", Resources(cpu_shares=9), {"a": "b"})
        assert calls[5] == ("exec_sync", "c", ("a", "b"), 3)
        assert calls[6] == ("stop_container", "c", 5)


async def test_without_sandbox_config_none_is_passed(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="i"))
        await world.cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id="p", config=config))
        assert world.runtime.calls[0][3] is None


async def test_lists_and_statuses(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        pods = await world.cri.ListPodSandbox(pb.ListPodSandboxRequest())
        assert [item.metadata.name for item in pods.items] == ["pod-1", "pod-2"]
        ready = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY))
        assert not (await world.cri.ListPodSandbox(pb.ListPodSandboxRequest(filter=ready))).items
        containers = await world.cri.ListContainers(pb.ListContainersRequest())
        assert [item.image_id for item in containers.containers] == [IMAGE_ID, IMAGE_ID]
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=f"{1:064x}", verbose=True)
        pod = await world.cri.PodSandboxStatus(request)
        assert (pod.status.network.ip, dict(pod.info)) == ("10.0.0.1", {"info": "{}"})
        one = await world.cri.ContainerStatus(pb.ContainerStatusRequest(container_id="c"))
        assert (one.status.started_at, dict(one.info)) == (NOW + 2, {})


async def test_stats(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        pods = await world.cri.ListPodSandboxStats(pb.ListPodSandboxStatsRequest())
        assert [item.linux.containers[0].cpu.usage_nano_cores.value for item in pods.stats] == [1_500_000, 1_500_000]
        pod = await world.cri.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=f"{2:064x}"))
        assert pod.stats.attributes.metadata.name == "pod-2"
        containers = await world.cri.ListContainerStats(pb.ListContainerStatsRequest())
        assert len(containers.stats) == 2
        one = await world.cri.ContainerStats(pb.ContainerStatsRequest(container_id="c"))
        assert one.stats.memory.working_set_bytes.value == 1_000_000


async def test_images(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        spec = pb.ImageSpec(image="docker.io/library/busybox:latest")
        auth = pb.AuthConfig(username="u", password="p")
        pulled = await world.img.PullImage(pb.PullImageRequest(image=spec, auth=auth))
        shown = await world.img.ImageStatus(pb.ImageStatusRequest(image=spec, verbose=True))
        assert pulled.image_ref == shown.image.id == IMAGE_ID
        assert (shown.image.uid.value, dict(shown.info)) == (1003, {"info": "{}"})
        absent = await world.img.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="absent")))
        assert not absent.HasField("image")
        assert [item.id for item in (await world.img.ListImages(pb.ListImagesRequest())).images] == [IMAGE_ID]
        wanted = pb.ImageFilter(image=pb.ImageSpec(image="absent"))
        assert not (await world.img.ListImages(pb.ListImagesRequest(filter=wanted))).images
        await world.img.RemoveImage(pb.RemoveImageRequest(image=spec))
        usage = await world.img.ImageFsInfo(pb.ImageFsInfoRequest())
        assert usage.image_filesystems[0] == usage.container_filesystems[0]
        world.runtime.directory = "/proc"  # another file system than that of the images
        apart = await world.img.ImageFsInfo(pb.ImageFsInfoRequest())
        assert apart.image_filesystems[0].fs_id == usage.image_filesystems[0].fs_id
        (written,) = apart.container_filesystems
        assert (written.fs_id.mountpoint, written.used_bytes.value, written.inodes_used.value) == ("/proc", 4096, 3)
        assert (usage.image_filesystems[0].fs_id.mountpoint, usage.image_filesystems[0].used_bytes.value) == ("/", 5000)
        assert world.images.calls == [("pull", spec.image, Credentials("u", "p")), ("remove", spec.image)]


BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("RunPodSandbox", pb.RunPodSandboxRequest(), "config: is missing"),
    (
        "RunPodSandbox",
        pb.RunPodSandboxRequest(
            config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a")), runtime_handler="kata"
        ),
        "runtime_handler: 'kata' is not configured",
    ),
    ("StopPodSandbox", pb.StopPodSandboxRequest(), "pod_sandbox_id: is missing"),
    ("RemovePodSandbox", pb.RemovePodSandboxRequest(), "pod_sandbox_id: is missing"),
    ("PodSandboxStatus", pb.PodSandboxStatusRequest(), "pod_sandbox_id: is missing"),
    ("PodSandboxStats", pb.PodSandboxStatsRequest(), "pod_sandbox_id: is missing"),
    ("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id="p"), "config: is missing"),
    ("StartContainer", pb.StartContainerRequest(), "container_id: is missing"),
    ("StopContainer", pb.StopContainerRequest(container_id="c", timeout=-1), "timeout: must be"),
    ("RemoveContainer", pb.RemoveContainerRequest(), "container_id: is missing"),
    ("ContainerStatus", pb.ContainerStatusRequest(), "container_id: is missing"),
    ("ContainerStats", pb.ContainerStatsRequest(), "container_id: is missing"),
    ("UpdateContainerResources", pb.UpdateContainerResourcesRequest(container_id="c"), "linux: is missing"),
    ("ReopenContainerLog", pb.ReopenContainerLogRequest(), "container_id: is missing"),
    ("ExecSync", pb.ExecSyncRequest(container_id="c"), "cmd: is missing"),
    ("PullImage", pb.PullImageRequest(), "image.image: is missing"),
    (
        "PullImage",
        pb.PullImageRequest(image=pb.ImageSpec(image="i", runtime_handler="kata")),
        "image.runtime_handler: 'kata' is not configured: give an empty name for the default handler, or put [runtime",
    ),
    ("ImageStatus", pb.ImageStatusRequest(), "image.image: is missing"),
    ("RemoveImage", pb.RemoveImageRequest(), "image.image: is missing"),
]


@pytest.mark.parametrize(
    ("method", "request_", "message"), BAD_REQUESTS, ids=[f"{n}{b[0]}" for n, b in enumerate(BAD_REQUESTS)]
)
async def test_bad_requests(tmp_path: Path, method: str, request_: Any, message: str) -> None:
    async with serving(tmp_path) as world:
        error = await world.error(method, request_)
        assert error.code() is CODE.INVALID_ARGUMENT
        assert str(error.details()).startswith(message)
        assert not world.runtime.calls
        assert world.observer.finished == [(method, "INVALID_ARGUMENT")]


async def test_errors_of_the_runtime_keep_code_and_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        for fault, code in (
            (errors.NotFoundError("no sandbox x"), CODE.NOT_FOUND),
            (errors.AlreadyExistsError("taken"), CODE.ALREADY_EXISTS),
            (errors.FailedPreconditionError("not ready"), CODE.FAILED_PRECONDITION),
            (errors.DeadlineExceededError("too slow"), CODE.DEADLINE_EXCEEDED),
            (errors.KernelError("mount /data", 2), CODE.INTERNAL),
            (errors.NotFoundError("odd \udcff name"), CODE.NOT_FOUND),
        ):
            world.runtime.faults["start_container"] = fault
            error = await world.error("StartContainer", pb.StartContainerRequest(container_id="c"))
            assert error.code() is code
            assert error.details() == str(fault).replace("\udcff", "\\xff")


async def test_a_very_long_sentence_still_arrives(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.faults["start_container"] = errors.InternalError("ä" * 50_000)
        error = await world.error("StartContainer", pb.StartContainerRequest(container_id="c"))
        assert error.code() is CODE.INTERNAL
        assert str(error.details()).startswith("ää")


async def test_a_bug_is_hidden_behind_an_incident_and_logged_once(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with serving(tmp_path) as world:
            world.runtime.faults["start_container"] = ZeroDivisionError("inner detail")
            error = await world.error("StartContainer", pb.StartContainerRequest(container_id="c" * 64))
            answer = await world.cri.Version(pb.VersionRequest())
            assert answer.runtime_name == "crishim"
    assert error.code() is CODE.INTERNAL
    match = re.fullmatch(r"internal error, see the log \(id ([0-9a-f]{8})\)", str(error.details()))
    assert match is not None
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert (line["incident"], line["container"]) == (match[1], "c" * 13)
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_failures_of_the_cleanup_are_logged_with_the_error(tmp_path: Path) -> None:
    fault = errors.UnavailableError("the keeper is gone")
    fault.add_note("undo of sandbox: release address: busy")
    with structlog.testing.capture_logs() as lines:
        async with serving(tmp_path) as world:
            world.runtime.faults["stop_sandbox"] = fault
            await world.error("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id="p"))
    (line,) = [line for line in lines if line["event"] == "the keeper is gone"]
    assert (line["log_level"], line["notes"]) == ("error", fault.__notes__)


async def test_lists_are_logged_at_debug_and_changes_at_info(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with serving(tmp_path) as world:
            await world.cri.ListContainers(pb.ListContainersRequest())
            await world.cri.StopContainer(pb.StopContainerRequest(container_id="c"))
    assert [line["log_level"] for line in lines if line["event"] == "done"] == ["debug", "info"]


async def test_an_answer_that_cannot_be_encoded_is_an_internal_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.inside = [container_view(1)]
        object.__setattr__(world.runtime.inside[0], "reason", "bad \udcff")
        error = await world.error("ContainerStatus", pb.ContainerStatusRequest(container_id="c"))
        assert error.code() is CODE.INTERNAL
        assert str(error.details()).startswith("internal error, see the log")


async def test_bytes_that_are_no_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(world.channel, "/runtime.v1.RuntimeService/StopContainer", b"\xff\xff")
        assert caught.value.code() is CODE.INVALID_ARGUMENT
        assert caught.value.details() == "the request is no valid runtime.v1.StopContainerRequest"


async def test_unimplemented_rpcs_say_what_to_use(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.name not in SENTENCES:
                    continue
                path = f"/{service.full_name}/{method.name}"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await raw(world.channel, path, b"", streaming=method.server_streaming)
                assert (caught.value.code(), caught.value.details()) == (CODE.UNIMPLEMENTED, SENTENCES[method.name])


def test_every_rpc_is_either_served_or_explained() -> None:
    for name, servicer in (("RuntimeService", RuntimeService), ("ImageService", ImageService)):
        for method in pb.DESCRIPTOR.services_by_name[name].methods:
            assert hasattr(servicer, snake(method.name)) != (method.name in SENTENCES), method.name


async def test_messages_up_to_16_mib(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="i"))
        config.annotations["big"] = "x" * (15 * 1024 * 1024)
        made = await world.cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id="p", config=config))
        assert made.container_id == "e" * 64
        config.annotations["bigger"] = "x" * (2 * 1024 * 1024)
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"unix:{world.path}", options=options) as world.channel:
            error = await world.error("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id="p", config=config))
        assert error.code() is CODE.RESOURCE_EXHAUSTED


async def test_an_answer_beyond_16_mib_is_refused_with_a_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        view = container_view(1)
        labels = {"big": "x" * (6 * 1024 * 1024)}
        config = dataclasses.replace(view.config, labels=labels)
        world.runtime.inside = [dataclasses.replace(view, id=f"c{n:063x}", config=config) for n in range(3)]
        error = await world.error("ListContainers", pb.ListContainersRequest())
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert "ask with a filter" in str(error.details())


async def test_rpc_and_objects_are_bound_for_every_line_below(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Watching(FakeRuntime):
        async def stop_container(self, container_id: str, timeout: int) -> None:
            seen.append(get_contextvars())

        async def stop_sandbox(self, sandbox_id: str) -> None:
            seen.append(get_contextvars())

    world = World(tmp_path)
    server = Server(Watching(), world.images, world.path, world.observer)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{world.path}") as world.channel:
            await world.cri.StopContainer(pb.StopContainerRequest(container_id="c" * 64))
            await world.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="p" * 64))
    finally:
        await server.stop(0)
    assert seen == [
        {"rpc": "StopContainer", "container": "c" * 13},
        {"rpc": "StopPodSandbox", "pod": "p" * 13},
    ]


async def test_a_call_that_comes_too_late_is_not_run() -> None:
    async def never(_request: bytes, _call: Call) -> bytes:
        raise AssertionError

    run = intercept("Version", never, FakeObserver())
    with pytest.raises(Refusal) as caught:
        await run(b"", Call("Version", remaining=-0.1))
    assert caught.value.code is CODE.DEADLINE_EXCEEDED


RUN = pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a")))


async def test_a_callers_deadline_cancels_the_wait_and_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.gate = asyncio.Event()
        error = await world.error("RunPodSandbox", RUN, timeout=0.2)
        assert error.code() is CODE.DEADLINE_EXCEEDED
        await asyncio.wait_for(world.runtime.cancelled.wait(), 10)
        for _ in range(200):
            if world.observer.finished:
                break
            await asyncio.sleep(0.01)
        assert world.observer.finished == [("RunPodSandbox", "DEADLINE_EXCEEDED")]
        assert len(world.server.calls) == 0


async def test_a_caller_that_leaves_is_counted_as_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.gate = asyncio.Event()
        call = world.cri.RunPodSandbox(RUN)
        await wait_for_calls(world, 1)
        call.cancel()
        await asyncio.wait_for(world.runtime.cancelled.wait(), 10)
        await wait_for_calls(world, 0)
        assert world.observer.finished == [("RunPodSandbox", "CANCELLED")]


async def wait_for_calls(world: World, number: int) -> None:
    for _ in range(500):
        if len(world.server.calls) == number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(world.server.calls.describe())


async def test_calls_in_flight_are_shown_and_finish_in_the_grace_period(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.gate = asyncio.Event()
        call = asyncio.ensure_future(world.cri.RunPodSandbox(RUN, timeout=60))
        await wait_for_calls(world, 1)
        (line,) = world.server.calls.describe()
        assert re.fullmatch(r"RunPodSandbox: \d+\.\d s, \d+\.\d s left", line)
        stopping = asyncio.ensure_future(world.server.stop(30))
        await asyncio.sleep(0.05)
        world.runtime.gate.set()
        assert (await call).pod_sandbox_id == "f" * 64
        await stopping
        await world.server.calls.wait_idle()
        assert not os.path.exists(world.path)


async def test_calls_that_outlast_the_grace_period_are_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.runtime.gate = asyncio.Event()
        call = asyncio.ensure_future(world.error("RunPodSandbox", RUN, timeout=60))
        await wait_for_calls(world, 1)
        await world.server.stop(0.1)
        assert (await call).code() in {CODE.CANCELLED, CODE.UNAVAILABLE}
        await asyncio.wait_for(world.runtime.cancelled.wait(), 10)
        await world.server.stop(0.1)
