"""What kubelet requires of a runtime beyond the CRI's words: fields that may not be empty, whole statistics, info."""

import asyncio
import json
import os
import re
from typing import Any

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.cri import refused
from tests.support.registry import PushedImage
from tests.support.world import Pod, World

STAY = "sleep 600"
SEMVER = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
NODE = {"namespace_options": {"network": "NODE", "pid": 1}}


async def test_what_the_runtime_says_of_itself(world: World) -> None:
    runtime = world.cri.runtime
    version = await runtime.Version(api.VersionRequest(version="0.1.0"))
    assert version.version == "0.1.0"
    assert (version.runtime_name, version.runtime_api_version) == ("crishim", "v1")
    assert SEMVER.fullmatch(version.runtime_version)
    driver = (await runtime.RuntimeConfig(api.RuntimeConfigRequest())).linux.cgroup_driver
    assert driver == api.CGROUPFS  # the enum's 0 would be systemd
    status = await runtime.Status(api.StatusRequest())
    assert {item.type: item.status for item in status.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert [handler.name for handler in status.runtime_handlers] == [""]
    assert status.HasField("features")


async def test_the_image_file_system_has_a_size_and_a_place(world: World) -> None:
    reply = await world.cri.image.ImageFsInfo(api.ImageFsInfoRequest())
    for usage in (*reply.image_filesystems, *reply.container_filesystems):
        assert usage.timestamp > 0
        assert usage.used_bytes.value > 0
        assert usage.HasField("inodes_used")
        assert os.path.isdir(usage.fs_id.mountpoint)
    assert len(reply.image_filesystems) == len(reply.container_filesystems) == 1


async def pod_status(world: World, pod: str) -> Any:
    """Return PodSandboxStatus."""
    return (await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod))).status


async def check_pod(world: World, pod: Pod, *, own_network: bool = True) -> None:
    """Assert that nothing of a pod is empty that kubelet reads."""
    status = await pod_status(world, pod.id)
    wanted = pod.config["metadata"]
    assert status.id == pod.id
    assert (status.metadata.name, status.metadata.uid, status.metadata.namespace) == (
        wanted["name"],
        wanted["uid"],
        wanted["namespace"],
    )
    assert status.created_at > 10**18  # nanoseconds
    assert status.linux.namespaces.options.network == (api.POD if own_network else api.NODE)
    assert bool(status.network.ip) == own_network
    rows = (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
    (row,) = [row for row in rows if row.id == pod.id]
    assert (row.metadata, row.state, row.created_at) == (status.metadata, status.state, status.created_at)


async def check_container(world: World, container: str, state: int) -> None:
    """Assert that nothing of a container is empty that kubelet reads, in a state."""
    status = await world.cri.status(container)
    assert (status.id, status.state) == (container, state)
    assert status.metadata.name
    assert status.created_at > 10**18
    assert status.image.image == world.image
    assert re.fullmatch(r".+/busybox@sha256:[0-9a-f]{64}", status.image_ref)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", status.image_id)
    assert status.stop_signal == api.SIGNAL_SIGTERM  # neither request nor image names one
    assert bool(status.started_at) == (state != api.CONTAINER_CREATED)
    assert bool(status.finished_at) == bool(status.reason) == (state == api.CONTAINER_EXITED)
    rows = (await world.cri.runtime.ListContainers(api.ListContainersRequest())).containers
    (row,) = [row for row in rows if row.id == container]
    same = ("id", "metadata", "state", "created_at", "image", "image_ref", "image_id", "labels", "annotations")
    assert [getattr(row, name) for name in same] == [getattr(status, name) for name in same]


async def test_nothing_that_kubelet_reads_is_empty_in_any_state(own_world: World) -> None:
    world = own_world
    pod, stopped, node = await world.pod(), await world.pod(), await world.pod(security=NODE)
    await world.cri.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=stopped.id))
    created = await world.cri.create(pod.id, world.config(STAY), pod.config)
    running = await world.run(pod, STAY)
    exited = await world.run(pod, "exit 3")
    await world.cri.wait_exit(exited)
    failed = await world.cri.create(pod.id, world.config(["/no/such"]), pod.config)
    with pytest.raises(grpc.aio.AioRpcError):
        await world.cri.start(failed)
    for _ in range(2):
        await check_pod(world, pod)
        await check_pod(world, node, own_network=False)
        assert (await pod_status(world, stopped.id)).state == api.SANDBOX_NOTREADY
        await check_container(world, created, api.CONTAINER_CREATED)
        await check_container(world, running, api.CONTAINER_RUNNING)
        await check_container(world, exited, api.CONTAINER_EXITED)
        await check_container(world, failed, api.CONTAINER_EXITED)
        world.instance.restart()
        await world.reconnect()


def swap_is_accounted() -> bool:
    """Tell whether control groups count swap: always on v2 where the kernel has swap, by a boot parameter on v1."""
    v1 = "/sys/fs/cgroup/memory"
    counted = not os.path.exists(v1) or os.path.exists(f"{v1}/memory.memsw.usage_in_bytes")
    return counted and os.path.exists("/proc/swaps")


def pressure_is_accounted() -> bool:
    """Tell whether control groups count pressure: on v2 alone, where the kernel does."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers") and os.path.exists("/proc/pressure/io")


async def test_statistics_hold_all_that_replaces_cadvisor(world: World) -> None:
    pod = await world.pod(labels={"l": "1"}, annotations={"a": "2"})
    limits = {"memory_limit_in_bytes": 64 << 20}
    script = "dd if=/dev/zero of=/x bs=1k count=64 2>/dev/null; while :; do :; done"
    container = await world.run(pod, script, resources=limits, labels={"c": "3"}, annotations={"d": "4"})
    request = api.ListPodSandboxStatsRequest(filter=api.PodSandboxStatsFilter(id=pod.id))
    async with asyncio.timeout(30):  # a rate needs two samples, the layer's usage a walk
        while True:
            (stats,) = (await world.cri.runtime.ListPodSandboxStats(request)).stats
            (inner,) = stats.linux.containers
            rates = (stats.linux.cpu, inner.cpu)
            if all(cpu.usage_nano_cores.value for cpu in rates) and inner.writable_layer.used_bytes.value >= 64 << 10:
                break
            await asyncio.sleep(0.1)
    assert (stats.attributes.id, stats.attributes.metadata.name) == (pod.id, pod.config["metadata"]["name"])
    assert (dict(stats.attributes.labels), dict(stats.attributes.annotations)) == ({"l": "1"}, {"a": "2"})
    assert (inner.attributes.id, inner.attributes.metadata.name) == (
        container,
        (await world.cri.status(container)).metadata.name,
    )
    assert (dict(inner.attributes.labels), dict(inner.attributes.annotations)) == ({"c": "3"}, {"d": "4"})
    for part in (stats.linux, inner):
        assert part.cpu.timestamp > 0
        assert part.cpu.usage_core_nano_seconds.value > 0
        memory = part.memory
        assert memory.timestamp > 0
        for name in ("working_set_bytes", "usage_bytes", "rss_bytes", "page_faults"):
            assert getattr(memory, name).value > 0, name
        assert memory.HasField("major_page_faults")
    assert 0 < inner.memory.available_bytes.value < 64 << 20
    network = stats.linux.network
    assert (network.timestamp > 0, network.default_interface.name) == (True, "eth0")
    for name in ("rx_bytes", "tx_bytes", "rx_errors", "tx_errors"):
        assert network.default_interface.HasField(name)
    assert stats.linux.process.process_count.value == 1
    layer = inner.writable_layer
    assert layer.timestamp > 0
    assert os.path.isdir(layer.fs_id.mountpoint)
    assert layer.inodes_used.value >= 1
    assert inner.HasField("swap") == swap_is_accounted()
    for part in (stats.linux, inner):
        if pressure_is_accounted():
            assert part.cpu.HasField("psi")
            assert part.memory.HasField("psi")
            assert part.io.HasField("psi")


async def test_an_empty_id_is_an_error_and_no_crash(world: World) -> None:
    runtime = world.cri.runtime
    for call in (
        runtime.PodSandboxStats(api.PodSandboxStatsRequest()),
        runtime.PodSandboxStatus(api.PodSandboxStatusRequest()),
        runtime.ContainerStats(api.ContainerStatsRequest()),
        runtime.ContainerStatus(api.ContainerStatusRequest()),
    ):
        assert "_id: is missing" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    await runtime.Version(api.VersionRequest())


async def test_an_image_by_its_digest_alone(own_world: World, busybox: PushedImage) -> None:
    world = own_world
    spec = api.ImageSpec(image=world.image)
    (digest,) = (await world.cri.image.ImageStatus(api.ImageStatusRequest(image=spec))).image.repo_digests
    await world.cri.image.RemoveImage(api.RemoveImageRequest(image=spec))
    assert await world.cri.pull(digest) == busybox.id
    spec = api.ImageSpec(image=digest)
    image = (await world.cri.image.ImageStatus(api.ImageStatusRequest(image=spec))).image
    assert (image.id, list(image.repo_tags), list(image.repo_digests)) == (busybox.id, [], [digest])
    assert image.size > 0
    pod = await world.pod()
    config = world.config("echo ran")
    config["image"] = {"image": image.id, "user_specified_image": digest}  # as kubelet asks
    container = await world.cri.run(pod.id, config, pod.config)
    status = await world.cri.wait_exit(container)
    assert (status.image.image, status.image_ref, status.image_id, status.exit_code) == (digest, digest, image.id, 0)
    listed = (await world.cri.image.ListImages(api.ListImagesRequest())).images
    assert [(row.id, row.spec.image) for row in listed] == [(image.id, digest)]


async def test_info_is_given_when_asked_for_and_is_json(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, STAY)
    runtime, images = world.cri.runtime, world.cri.image
    spec = api.ImageSpec(image=world.image)
    for verbose in (False, True):
        answers = (
            await runtime.Status(api.StatusRequest(verbose=verbose)),
            await runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=verbose)),
            await runtime.ContainerStatus(api.ContainerStatusRequest(container_id=container, verbose=verbose)),
            await images.ImageStatus(api.ImageStatusRequest(image=spec, verbose=verbose)),
        )
        for answer in answers:
            assert bool(answer.info) == verbose
            for text in answer.info.values():
                assert isinstance(json.loads(text), dict)
    inspected = json.loads(answers[2].info["info"])
    assert inspected["sandboxID"] == pod.id
    assert os.path.exists(f"/proc/{inspected['pid']}")
    assert json.loads(answers[0].info["config"])["stateDir"] == world.instance.state
