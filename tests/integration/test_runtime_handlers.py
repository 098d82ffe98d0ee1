"""Named runtime handlers: configured, listed, used, shown, and kept over a restart that takes the name away."""

import json
from collections.abc import Iterator

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.abilities import need_containers
from tests.support.configs import pod_config
from tests.support.cri import refused, sandbox_message
from tests.support.instance import Instance
from tests.support.registry import PushedImage, Registry
from tests.support.world import Pod, World

NAMES = ["", "test-handler", "other"]
CONFIG = "[runtime.handlers.test-handler]\n[runtime.handlers.other]\n"


@pytest.fixture
def named(test_leaks: None) -> Iterator[Instance]:
    """Return a running instance with named handlers."""
    need_containers()
    made = Instance(CONFIG)
    try:
        made.start()
        yield made
    finally:
        made.close()


async def handlers(world: World) -> list[tuple[str, bool, bool]]:
    """Return name, and whether recursive read-only mounts and user namespaces are there, as Status lists them."""
    found = (await world.cri.runtime.Status(api.StatusRequest())).runtime_handlers
    return [(h.name, h.features.recursive_read_only_mounts, h.features.user_namespaces) for h in found]


async def shown(world: World, pod: str) -> tuple[str, str, str]:
    """Return a pod's handler by its status, the list, and the verbose information."""
    request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    reply = await world.cri.runtime.PodSandboxStatus(request)
    listing = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(id=pod))
    (row,) = (await world.cri.runtime.ListPodSandbox(listing)).items
    return reply.status.runtime_handler, row.runtime_handler, json.loads(reply.info["info"])["runtimeHandler"]


async def run(world: World, handler: str) -> Pod:
    """Run a pod with a handler."""
    config = pod_config(handler, log_directory=f"{world.instance.logs}/{handler}")
    request = api.RunPodSandboxRequest(config=sandbox_message(config), runtime_handler=handler)
    return Pod((await world.cri.runtime.RunPodSandbox(request)).pod_sandbox_id, config)


async def test_a_named_handler(named: Instance, busybox: PushedImage, registry: Registry) -> None:
    async with World(named, busybox.reference, registry) as world:
        await world.cri.pull(busybox.reference)
        listed = await handlers(world)
        assert [name for name, *_ in listed] == NAMES
        assert len({tuple(features) for _, *features in listed}) == 1
        pod = await run(world, "test-handler")
        outcome = await world.once("echo here; exit 3", pod=pod)
        assert (outcome.stdout, outcome.code) == ("here\n", 3)
        assert await shown(world, pod.id) == ("test-handler",) * 3
        request = api.RunPodSandboxRequest(config=sandbox_message(pod_config("x")), runtime_handler="kata")
        details = await refused(world.cri.runtime.RunPodSandbox(request), grpc.StatusCode.INVALID_ARGUMENT)
        assert details.startswith("runtime_handler: 'kata' is not configured: ")
        assert details.endswith("beside test-handler, other")
        spec = api.ImageSpec(image=busybox.reference, runtime_handler="kata")
        pull = world.cri.image.PullImage(api.PullImageRequest(image=spec))
        assert "image.runtime_handler: 'kata'" in await refused(pull, grpc.StatusCode.INVALID_ARGUMENT)
        spec.runtime_handler = "other"
        reply = await world.cri.image.PullImage(api.PullImageRequest(image=spec))
        assert reply.image_ref == busybox.id
        await world.cri.remove_pod(pod.id)


async def test_a_pod_outlives_its_handlers_name(named: Instance, busybox: PushedImage, registry: Registry) -> None:
    async with World(named, busybox.reference, registry) as world:
        await world.cri.pull(busybox.reference)
        pod = await run(world, "other")
        named.kill()
        with open(named.config, "w", encoding="utf-8") as file:
            file.write("[runtime.handlers.test-handler]\n")
        named.start()
        await world.reconnect()
        assert [name for name, *_ in await handlers(world)] == NAMES[:2]
        assert await shown(world, pod.id) == ("other",) * 3
        assert (await world.once("echo on", pod=pod)).stdout == "on\n"
        await world.cri.remove_pod(pod.id)


def test_crictl_names_the_handler(named: Instance) -> None:
    config = pod_config("named")
    path = named.config_file(config)
    pod = named.crictl("runp", "--runtime", "test-handler", path).stdout.strip()
    assert "test-handler" in named.crictl("pods").stdout
    assert named.json("inspectp", pod)["status"]["runtimeHandler"] == "test-handler"
    assert [h.get("name", "") for h in named.json("info")["runtimeHandlers"]] == NAMES
    failed = named.crictl("runp", "--runtime", "kata", path, check=False)
    assert failed.returncode != 0
    assert "runtime_handler: 'kata' is not configured" in failed.stderr
