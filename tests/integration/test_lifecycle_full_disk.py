"""A full root file system, really filled: nothing new is made, what is there can be ended and removed."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from crishim.engine.client import StartError
from tests.support.cri import refused
from tests.support.instance import Instance
from tests.support.lab import Lab, open_lab, scenario
from tests.support.registry import Registry
from tests.support.small import crowd, small_file_system
from tests.support.world import World

STAY = "while :; do sleep 100; done"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(params=["tmpfs", "ext4"])
def small_world(
    request: pytest.FixtureRequest, instance: Instance, busybox_reference: str, registry: Registry
) -> Iterator[World]:
    """Return a world whose instance has a root of 64 MiB."""
    instance.stop()
    with small_file_system(instance.root, request.param, 64):
        instance.start()
        instance.crictl("pull", busybox_reference)
        yield World(instance, busybox_reference, registry)
        instance.crictl("rmp", "-a", "-f")
        instance.stop()
    instance.start()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from open_lab()


def readiness(instance: Instance) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{instance.metrics}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def condition(instance: Instance) -> tuple[bool, str, str]:
    found = {item["type"]: item for item in instance.json("info")["status"]["conditions"]}["RuntimeReady"]
    return found["status"], found["reason"], found["message"]


@pytest.mark.parametrize("end", ["kill", "stop", "go on"])
async def test_a_full_disk_refuses_what_is_new_and_lets_everything_go(small_world: World, end: str) -> None:
    world, instance = small_world, small_world.instance
    pods = [await world.pod() for _ in range(3)]
    runs = await world.run(pods[0], STAY)
    created = await world.cri.create(pods[0].id, world.config(STAY), pods[0].config)
    assert condition(instance) == (True, "", "")
    crowd(instance.root)
    text = f"the file system of {instance.root} is full"
    assert text in await refused(world.pod(), EXHAUSTED)
    assert text in await refused(world.cri.create(pods[1].id, world.config(STAY), pods[1].config), EXHAUSTED)
    assert text in await refused(world.cri.start(created), EXHAUSTED)
    assert (await world.cri.status(created)).state == 0, "it stays CREATED"
    code, answer = readiness(instance)
    assert code == 503
    assert text in answer
    ready, reason, message = condition(instance)
    assert (ready, reason) == (False, "DiskFull")
    assert text in message
    if end != "go on":
        (instance.kill if end == "kill" else instance.stop)()
        crowd(instance.root)
        instance.start()
        await world.reconnect()
    assert (await world.cri.exec(runs, "echo", "lives")).stdout == b"lives\n"
    for step in (
        ("rm", created),
        ("stop", "-t", "0", runs),
        ("rm", runs),
        ("stopp", pods[0].id),
        ("rmp", pods[0].id),
        ("rmp", "-f", pods[1].id),
        ("rmp", "-f", pods[2].id),
        ("rmi", world.image),
    ):
        crowd(instance.root)  # what went is taken by others at once
        instance.crictl(*step)
    assert instance.json("ps", "-a")["containers"] == []
    assert instance.json("pods")["items"] == []
    assert instance.json("images")["images"] == []
    Path(instance.root, "crowd").unlink()
    assert condition(instance) == (True, "", "")
    assert readiness(instance) == (200, "ok\n")
    instance.crictl("pull", world.image)
    await world.run(await world.pod(), STAY)


@scenario
async def test_an_overlay_without_space_is_refused_and_not_read_only(lab: Lab, tmp_path: Path) -> None:
    async with lab.pod() as pod:
        plan = pod.plan("echo x >/x")
        top = lab.paths.container(plan.container_id)
        with small_file_system(top, "ext4", 8):
            for name in ("upper", "work"):
                Path(top, name).mkdir()
            crowd(top)
            with pytest.raises(StartError, match=r"[Nn]o space") as caught:
                await pod.start(plan)
            assert caught.value.errno == 28
