"""What a container writes shows in its stats soon, though nobody asks in between, and with the time of its measure."""

import asyncio
import time
from typing import Any

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.world import World

MIB = 1 << 20


async def layer(world: World, container: str) -> Any:
    request = api.ContainerStatsRequest(container_id=container)
    return (await world.cri.runtime.ContainerStats(request)).stats.writable_layer


async def test_fifty_mebibytes_and_a_thousand_files_show_within_fifteen_seconds(world: World) -> None:
    container = await world.run(await world.pod(), "sleep 600")
    before = await layer(world, container)
    began = time.time_ns()
    touch = "i=0; while [ $i -lt 1000 ]; do : >/f$i; i=$((i+1)); done"
    write = f"dd if=/dev/urandom of=/big bs=1M count=50 2>/dev/null; {touch}"
    await world.cri.output(container, "sh", "-c", write)
    await asyncio.sleep(15)
    after = await layer(world, container)
    assert 0.95 * 50 * MIB <= after.used_bytes.value - before.used_bytes.value <= 1.05 * 50 * MIB
    assert 950 <= after.inodes_used.value - before.inodes_used.value <= 1050
    assert before.timestamp < began < after.timestamp < time.time_ns()
    await asyncio.sleep(8)
    assert (await layer(world, container)).timestamp == after.timestamp  # idle: not measured anew


async def test_what_a_container_wrote_last_counts_after_its_end(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, "sleep 2; dd if=/dev/urandom of=/big bs=1M count=5 2>/dev/null")
    before = await layer(world, container)
    await world.cri.wait_exit(container)
    async with asyncio.timeout(60):
        while (await layer(world, container)).used_bytes.value - before.used_bytes.value < 4.75 * MIB:
            await asyncio.sleep(0.2)
