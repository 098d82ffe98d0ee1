"""Limits on a real kernel: what it would refuse is refused before, and an update is whole or not at all."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim.linux.cgroups.layout import Layout, detect
from crishim.linux.cgroups.limits import MIN_MEMORY
from tests.support.cri import refused
from tests.support.world import Pod, World

STAY = "while :; do sleep 100; done"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def layout() -> Layout:
    return detect()


class Group:
    """A control group by the name that the runtime tells."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name

    def path(self, controller: str, file: str = "") -> str:
        directory = self.layout.directory(controller, self.name)
        if directory is None:
            pytest.skip(f"lacks the {controller} controller")
        return f"{directory}/{file}"

    def read(self, controller: str, file: str) -> str:
        return Path(self.path(controller, file)).read_text(encoding="ascii").strip()

    def write(self, controller: str, file: str, value: str) -> None:
        Path(self.path(controller, file)).write_text(value, encoding="ascii")

    @property
    def shares(self) -> str:
        return self.read("cpu", "cpu.weight" if self.layout.version == 2 else "cpu.shares")

    @shares.setter
    def shares(self, value: str) -> None:
        self.write("cpu", "cpu.weight" if self.layout.version == 2 else "cpu.shares", value)


def group_of(world: World, layout: Layout, container: str) -> Group:
    return Group(layout, world.instance.json("inspect", container)["info"]["cgroup"])


def pod_group_of(world: World, layout: Layout, pod: Pod) -> Group:
    return Group(layout, world.instance.json("inspectp", pod.id)["info"]["cgroup"])


async def update(world: World, container: str, **resources: Any) -> None:
    linux = api.LinuxContainerResources(**resources)
    request = api.UpdateContainerResourcesRequest(container_id=container, linux=linux)
    await world.cri.runtime.UpdateContainerResources(request)


WRONG = {
    "cpuset_cpus": "0-4095",
    "cpuset_mems": "1023",
    "cpu_quota": 999,
    "cpu_period": 1_000_001,
    "memory_swap_limit_in_bytes": 1 << 20,
}


@pytest.mark.parametrize("field", WRONG)
async def test_a_value_that_cannot_be_is_refused_at_create_and_update(world: World, layout: Layout, field: str) -> None:
    if field.startswith("cpuset") and not layout.has("cpuset"):
        pytest.skip("lacks the cpuset controller")
    wrong = {field: WRONG[field]}
    memory = {"memory_limit_in_bytes": 64 << 20} if "swap" in field else {}
    pod = await world.pod()
    config = world.config(STAY, resources={**wrong, **memory})
    text = await refused(world.cri.create(pod.id, config, pod.config), INVALID)
    assert f"config.linux.resources.{field}: " in text
    container = await world.run(pod, STAY, resources={"cpu_shares": 512, **memory})
    before = group_of(world, layout, container).shares
    text = await refused(update(world, container, cpu_shares=300, **wrong), INVALID)
    assert f"linux.{field}: " in text
    assert group_of(world, layout, container).shares == before


async def test_a_quota_above_the_pods_own_is_refused_with_both_named(world: World, layout: Layout) -> None:
    if layout.version == 2:
        pytest.skip("lacks a kernel that refuses it (cgroup v1): on v2 the smaller of both holds")
    pod = await world.pod()
    container = await world.run(pod, STAY)
    pod_group_of(world, layout, pod).write("cpu", "cpu.cfs_quota_us", "50000")
    text = await refused(update(world, container, cpu_quota=60_000), INVALID)
    assert "linux.cpu_quota: 60000 of 100000 µs is more than the group above has, 50000 of 100000" in text
    config = world.config(STAY, resources={"cpu_quota": 60_000})
    text = await refused(world.cri.create(pod.id, config, pod.config), INVALID)
    assert "config.linux.resources.cpu_quota: 60000 of 100000 µs" in text
    await update(world, container, cpu_quota=50_000)
    assert group_of(world, layout, container).read("cpu", "cpu.cfs_quota_us") == "50000"


async def test_what_the_kernel_refuses_half_way_is_taken_back(world: World, layout: Layout) -> None:
    pod = await world.pod()
    container = await world.run(pod, STAY, resources={"cpu_shares": 512})
    group = group_of(world, layout, container)
    before = group.shares
    if layout.version == 2:
        text = await refused(update(world, container, cpu_shares=300, unified={"memory.high": "much"}), INVALID)
        assert "linux.unified['memory.high']: the kernel refuses it" in text
    else:
        inner = group.path("cpu", "inner")
        os.mkdir(inner)
        try:
            Path(inner, "cpu.cfs_quota_us").write_text("80000", encoding="ascii")
            text = await refused(update(world, container, cpu_shares=300, cpu_quota=50_000), INVALID)
        finally:
            os.rmdir(inner)
        assert "linux.cpu_quota: the kernel refuses it (write cpu.cfs_quota_us=50000: Invalid argument)" in text
    assert group.shares == before
    status = await world.cri.status(container)
    assert (status.resources.linux.cpu_shares, status.resources.linux.cpu_quota) == (512, 0)


async def test_an_update_writes_what_the_record_has_already(world: World, layout: Layout) -> None:
    container = await world.run(await world.pod(), STAY, resources={"cpu_shares": 512})
    group = group_of(world, layout, container)
    before, group.shares = group.shares, "300"
    await update(world, container, cpu_shares=512)
    assert group.shares == before


async def test_unified_keys_are_tried_at_create(world: World, layout: Layout) -> None:
    pod = await world.pod()
    for key, value in (("memory.high", "much"), ("memory.hihg", "1")):
        config = world.config(STAY)
        config["linux"]["resources"] = {"unified": {key: value}}
        text = await refused(world.cri.create(pod.id, config, pod.config), INVALID)
        assert f"config.linux.resources.unified['{key}']: " in text
    container = await world.cri.create(pod.id, world.config(STAY), pod.config)
    assert not any(map(os.path.exists, layout.directories(group_of(world, layout, container).name)))


async def test_memory_below_what_a_start_needs_is_refused_with_the_smallest_that_works(world: World) -> None:
    pod = await world.pod()
    for limit in (1, 4096, 1 << 20, MIN_MEMORY - 1):
        config = world.config(STAY, resources={"memory_limit_in_bytes": limit})
        text = await refused(world.cri.create(pod.id, config, pod.config), INVALID)
        assert f"config.linux.resources.memory_limit_in_bytes: must be at least {MIN_MEMORY}" in text
    container = await world.run(pod, ["/bin/sleep", "600"], resources={"memory_limit_in_bytes": MIN_MEMORY})
    text = await refused(update(world, container, memory_limit_in_bytes=MIN_MEMORY - 1), INVALID)
    assert f"linux.memory_limit_in_bytes: must be at least {MIN_MEMORY}" in text
    assert (await world.cri.exec(container, "/bin/true")).exit_code == 0
