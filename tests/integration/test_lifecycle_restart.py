"""The daemon is killed under running containers: nothing of theirs is lost."""

import asyncio
import os
import time
from functools import partial

import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.cri import bounded, log_text
from tests.support.world import Pod, World

PODS, EACH = 4, 5

# Writes numbered lines until its flag file appears, leaves the count behind and ends with a code of its own.
WRITER = """
n=0
while [ ! -e /flags/{flag} ]; do echo line $n; n=$((n+1)); usleep 30000; done
echo $n > /flags/{name}.count
exit {code}
"""


async def start_writers(world: World, flags: str) -> dict[str, tuple[Pod, str, int]]:
    """Start 20 writers: container id → (pod, name, exit code). Even ones wait for `away`, odd ones for `back`."""
    pods = [await world.pod() for _ in range(PODS)]
    found = {}
    for number in range(PODS * EACH):
        pod, name, code = pods[number % PODS], f"writer{number}", 10 + number
        script = WRITER.format(flag="back" if number % 2 else "away", name=name, code=code)
        mounts = [{"container_path": "/flags", "host_path": flags}]
        found[await world.run(pod, script, name=name, mounts=mounts)] = (pod, name, code)
    return found


@pytest.mark.shared_mounts
async def test_twenty_logging_containers_lose_nothing_when_the_daemon_is_killed(
    own_world: World, tmp_path: os.PathLike[str]
) -> None:
    world, flags = own_world, str(tmp_path)
    writers = await start_writers(world, flags)
    await asyncio.sleep(0.5)
    world.instance.kill()
    killed_at = time.time_ns()
    touch(flags, "away")
    while len([name for name in os.listdir(flags) if name.endswith(".count")]) < PODS * EACH // 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    started_again = time.time_ns()
    world.instance.start()
    await world.reconnect()
    for container, (_, name, code) in writers.items():
        status = await world.cri.status(container)
        if os.path.exists(f"{flags}/{name}.count"):
            assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, code), name
            assert killed_at <= status.finished_at <= started_again, name
        else:
            assert status.state == api.CONTAINER_RUNNING, name
    touch(flags, "back")
    for container, (pod, name, code) in writers.items():
        status = await world.cri.wait_exit(container)
        assert (status.exit_code, status.reason) == (code, "Error"), name
        with open(f"{flags}/{name}.count", encoding="ascii") as file:
            count = int(file.read())
        assert log_text(pod.log(name)).decode() == "".join(f"line {n}\n" for n in range(count)), name
        assert count > 15


def touch(directory: str, name: str) -> None:
    """Make an empty file."""
    os.close(os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY, 0o644))


async def test_an_adopted_container_takes_exec_stop_and_reopen(own_world: World) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.run(pod, "trap 'exit 9' TERM; echo up; while :; do usleep 20000; done", name="c")
    while b"up" not in log_text(pod.log("c")):
        await asyncio.sleep(0.02)
    world.instance.restart()
    await world.reconnect()
    assert await world.cri.output(container, "echo", "still here") == "still here\n"
    os.rename(pod.log("c"), pod.log("c") + ".old")
    await world.cri.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container))
    assert os.path.exists(pod.log("c"))
    await world.cri.stop(container, grace=20)
    assert (await world.cri.status(container)).exit_code == 9


async def test_pods_of_before_and_after_a_restart_live_side_by_side(own_world: World) -> None:
    world = own_world
    before = await world.pod()
    container = await world.run(before, ["httpd", "-f", "-p", "8080", "-h", "/www"])
    world.instance.restart()
    await world.reconnect()
    after = await world.pod()
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=before.id))
    fresh = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=after.id))
    assert reply.status.state == api.SANDBOX_READY
    assert reply.status.network.ip != fresh.status.network.ip
    url = f"http://{reply.status.network.ip}:8080/"
    fetch = f"for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - {url} && exit 0; sleep 0.1; done; exit 1"
    outcome = await world.once(fetch, pod=after)
    assert outcome.stdout == "Hello from crishim.\n"
    assert (await world.cri.status(container)).state == api.CONTAINER_RUNNING


async def test_ten_kills_in_a_row_between_starts_leave_every_container_accounted_for(own_world: World) -> None:
    world = own_world
    for round_ in range(10):
        pod = await world.pod(f"round{round_}")
        container = await world.run(pod, f"exit {round_ + 1}")
        world.instance.restart()
        await world.reconnect()
        assert (await world.cri.wait_exit(container)).exit_code == round_ + 1


async def test_images_survive_and_a_second_pull_is_the_same(own_world: World) -> None:
    world = own_world
    before = await world.cri.image.ListImages(api.ListImagesRequest())
    world.instance.restart()
    await world.reconnect()
    after = await world.cri.image.ListImages(api.ListImagesRequest())
    assert [i.id for i in after.images] == [i.id for i in before.images]
    assert await world.cri.pull(world.image) == before.images[0].id


async def test_kills_at_random_moments_of_a_burst_end_in_a_state_that_can_be_removed(own_world: World) -> None:
    world = own_world
    for moment in (0.0, 0.01, 0.03, 0.08, 0.2):
        burst = asyncio.gather(*(world.pod() for _ in range(8)), return_exceptions=True)
        await asyncio.sleep(moment)
        world.instance.kill()
        await burst
        world.instance.start()
        await world.reconnect()
        rows = (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
        await bounded(4, [partial(world.cri.remove_pod, row.id) for row in rows])
        assert not (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
