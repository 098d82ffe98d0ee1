"""Damaged records, a second daemon, a reboot: the daemon serves on and removes what no one owns."""

import os
import shutil
import sqlite3
import subprocess

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.world import World

STAY = "sleep 600"


def damage(world: World, statement: str, *values: object) -> int:
    """Change the store behind a stopped daemon's back; return how many rows changed."""
    connection = sqlite3.connect(f"{world.instance.root}/state.db")
    try:
        with connection:
            return connection.execute(statement, values).rowcount
    finally:
        connection.close()


async def test_one_unreadable_record_is_set_aside_and_the_others_live(own_world: World) -> None:
    world = own_world
    good, bad = await world.pod(), await world.pod()
    kept = await world.run(good, STAY)
    lost = await world.run(bad, STAY)
    world.instance.kill()
    assert damage(world, "UPDATE containers SET document = ? WHERE id = ?", b'{"cut off', lost) == 1
    world.instance.start()
    await world.reconnect()
    assert (await world.cri.status(kept)).state == api.CONTAINER_RUNNING
    assert await world.cri.output(kept, "echo", "fine") == "fine\n"
    rows = (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
    assert {row.id for row in rows} == {good.id, bad.id}
    await world.cri.remove_pod(bad.id)


async def test_a_lost_sandbox_record_takes_its_containers_and_leaves_nothing(own_world: World) -> None:
    world = own_world
    good, bad = await world.pod(), await world.pod()
    kept = await world.run(good, STAY)
    await world.run(bad, STAY)
    world.instance.kill()
    assert damage(world, "DELETE FROM sandboxes WHERE id = ?", bad.id) == 1
    world.instance.start()
    await world.reconnect()
    rows = (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
    assert [row.id for row in rows] == [good.id]
    assert (await world.cri.status(kept)).state == api.CONTAINER_RUNNING


async def test_a_database_full_of_garbage_is_moved_aside(own_world: World) -> None:
    world = own_world
    pod = await world.pod()
    await world.run(pod, STAY)
    world.instance.kill()
    for name in os.listdir(world.instance.root):
        if name.startswith("state.db"):
            with open(f"{world.instance.root}/{name}", "wb") as file:
                file.write(b"not a database at all\n" * 500)
    world.instance.start()
    await world.reconnect()
    assert not (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
    assert [name for name in os.listdir(world.instance.root) if "corrupt" in name]
    await world.cri.pull(world.image)
    outcome = await world.once("echo again")
    assert outcome.stdout == "again\n"


async def test_after_a_reboot_sandboxes_are_not_ready_and_containers_have_ended(own_world: World) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.run(pod, STAY)
    world.instance.kill()
    reboot(world)
    world.instance.start()
    await world.reconnect()
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert reply.status.state == api.SANDBOX_NOTREADY
    status = await world.cri.status(container)
    assert (status.state, status.exit_code != 0) == (api.CONTAINER_EXITED, True)
    assert (await world.once("echo new")).stdout == "new\n"


def reboot(world: World) -> None:
    """Do what a reboot does to an instance: its processes, mounts and state directory go."""
    groups = f"/sys/fs/cgroup/pids{world.instance.cgroup_parent}"
    if not os.path.isdir(groups):
        groups = f"/sys/fs/cgroup{world.instance.cgroup_parent}"
    for directory, _, _ in os.walk(groups):
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            for pid in file.read().split():
                subprocess.run(["kill", "-KILL", pid], check=False)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split()[4] for line in file if f" {world.instance.state}" in line]
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    shutil.rmtree(world.instance.state)


async def test_a_second_daemon_on_the_same_root_refuses(own_world: World) -> None:
    world = own_world
    command = [*world.instance.command()]
    command[command.index("--socket") + 1] += ".second"
    command[command.index("--metrics-listen") + 1] = ""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert world.instance.root in result.stderr
    assert "Traceback" not in result.stderr
    assert (await world.once("echo served on")).stdout == "served on\n"
