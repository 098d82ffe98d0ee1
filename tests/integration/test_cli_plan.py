"""`crishim plan` against a real daemon and a real container, and the daemon's end with calls in flight."""

import asyncio
import json
import os
import subprocess
import sys

from tests.support.instance import Instance
from tests.support.world import World


def plan(instance: Instance, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "crishim", "plan", "--socket", instance.socket, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_plan_shows_how_a_container_is_started(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, ["/bin/sleep", "1000"])
    done = await asyncio.to_thread(plan, world.instance, container)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["container_id"] == container
    assert document["process"]["argv"] == ["/bin/sleep", "1000"]
    by_prefix = await asyncio.to_thread(plan, world.instance, container[:12])
    assert by_prefix.stdout == done.stdout


async def test_plan_of_what_does_not_exist(world: World) -> None:
    done = await asyncio.to_thread(plan, world.instance, "0" * 64)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("crishim: ")
    assert "0" * 64 in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_graceful_end_lets_calls_finish_and_keeps_containers(own_world: World) -> None:
    pod = await own_world.pod()
    container = await own_world.run(pod, "trap 'exit 7' TERM; while :; do sleep 0.1; done")
    calls = [asyncio.create_task(own_world.cri.exec(container, "/bin/sh", "-c", "sleep 1; echo done")) for _ in "ab"]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(own_world.instance.stop)
    for call in calls:
        assert (await call).stdout == b"done\n"
    assert "waiting for calls in flight" in own_world.instance.log()
    assert os.listdir(f"{own_world.instance.state}/pods") == [pod.id]
    assert os.path.exists(f"/sys/class/net/{own_world.instance.bridge}")
    await asyncio.to_thread(own_world.instance.start)
    await own_world.reconnect()
    status = await own_world.cri.status(container)
    assert status.state == 1  # CONTAINER_RUNNING
    await own_world.cri.stop(container, 10)
    assert (await own_world.cri.status(container)).exit_code == 7
