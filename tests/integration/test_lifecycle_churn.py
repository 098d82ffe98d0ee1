"""Many pods come and go: the machine is where it was, and the daemon has not grown."""

import asyncio
import glob
import os
from functools import partial

from tests.support import leaks
from tests.support.cri import bounded
from tests.support.instance import Instance
from tests.support.world import World

WARM_UP, PODS, AT_A_TIME = 100, 500, 16


async def pod_and_gone(world: World, name: str) -> None:
    """Make a pod with a container that ends by itself, and remove both."""
    pod = await world.pod(name)
    container = await world.run(pod, ["true"])
    await world.cri.wait_exit(container)
    await world.cri.remove_pod(pod.id)


def resident(instance: Instance) -> int:
    """Return the daemon's resident set in KiB."""
    with open(f"/proc/{instance.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def descriptors(instance: Instance) -> list[str]:
    """Return what the daemon's open descriptors point to."""
    path = f"/proc/{instance.pid}/fd"
    return sorted(os.readlink(f"{path}/{name}") for name in os.listdir(path))


def writable_layers(instance: Instance) -> list[str]:
    """Return what is left of containers' directories, those on their way out included."""
    return glob.glob(f"{instance.root}/containers/*/*") + glob.glob(f"{instance.root}/containers/.gone/*")


async def at_rest(instance: Instance) -> None:
    """Wait until what is removed off the critical path is gone: the containers' directories."""
    async with asyncio.timeout(60):
        while writable_layers(instance):
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)


async def test_five_hundred_pods_leave_nothing_and_the_daemon_does_not_grow(own_world: World) -> None:
    world = own_world
    before = leaks.snapshot()
    await bounded(AT_A_TIME, [partial(pod_and_gone, world, f"warm{n}") for n in range(WARM_UP)])
    await at_rest(world.instance)
    memory, files = resident(world.instance), descriptors(world.instance)
    await bounded(AT_A_TIME, [partial(pod_and_gone, world, f"pod{n}") for n in range(PODS)])
    await at_rest(world.instance)
    assert resident(world.instance) <= memory * 1.05
    assert len(descriptors(world.instance)) <= len(files), set(descriptors(world.instance)) - set(files)
    assert [leak for leak in leaks.leaks_since(before) if leak.kind != "fd"] == []
