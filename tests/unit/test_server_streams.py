"""Lists in parts, on the real grpc server: all rows in order, in messages that a client with gRPC's own limit takes."""

import dataclasses
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim._proto.runtime.v1 import api_pb2_grpc as rpc
from crishim.server import parts
from tests.fakes.cri_backend import IMAGE, container_view, sandbox_view
from tests.unit.test_server_rpc import CODE, World, serving

MANY = 5000
DEFAULT_LIMIT = 4 << 20

LISTS = {
    "StreamPodSandboxes": ("ListPodSandbox", "pod_sandboxes", "items"),
    "StreamContainers": ("ListContainers", "containers", "containers"),
    "StreamContainerStats": ("ListContainerStats", "container_stats", "stats"),
    "StreamPodSandboxStats": ("ListPodSandboxStats", "pod_sandbox_stats", "stats"),
}


async def streamed(stub: Any, method: str, field: str) -> tuple[list[Any], list[int]]:
    """Return the rows of a streamed list and the sizes of its messages."""
    rows, sizes = [], []
    async for message in getattr(stub, method)(getattr(pb, f"{method}Request")()):
        rows += getattr(message, field)
        sizes.append(message.ByteSize())
    return rows, sizes


def fill(world: World, count: int, note: str) -> None:
    world.runtime.pods = [sandbox_view(1)]
    view = container_view(1)
    config = dataclasses.replace(view.config, labels={"note": note})
    world.runtime.inside = [dataclasses.replace(view, id=f"c{n:063x}", config=config) for n in range(count)]


async def test_5000_containers_stream_where_a_list_is_too_long(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        fill(world, MANY, "x" * 3500)
        error = await world.error("ListContainers", pb.ListContainersRequest())
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        async with grpc.aio.insecure_channel(f"unix:{world.path}") as plain:  # receives 4 MiB
            for method in ("StreamContainers", "StreamContainerStats"):
                rows, sizes = await streamed(rpc.RuntimeServiceStub(plain), method, LISTS[method][1])
                ids = [row.id if method == "StreamContainers" else row.attributes.id for row in rows]
                assert ids == [view.id for view in world.runtime.inside]
                assert max(sizes) <= parts.BYTES < DEFAULT_LIMIT
                assert sum(sizes) > 17_500_000


@pytest.mark.parametrize("method", LISTS)
async def test_a_stream_has_what_the_list_has(tmp_path: Path, method: str) -> None:
    one, field, rows = LISTS[method]
    async with serving(tmp_path) as world:
        listed = await getattr(world.cri, one)(getattr(pb, f"{one}Request")())
        assert (await streamed(world.cri, method, field))[0] == list(getattr(listed, rows))
        world.runtime.pods, world.runtime.inside = [], []
        assert await streamed(world.cri, method, field) == ([], [])


async def test_filters_and_images(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        wanted = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED))
        assert [m async for m in world.cri.StreamContainers(pb.StreamContainersRequest(filter=wanted))] == []
        (images,) = [message async for message in world.img.StreamImages(pb.StreamImagesRequest())]
        assert [image.id for image in images.images] == [IMAGE.id]
        none = pb.ImageFilter(image=pb.ImageSpec(image="other"))
        assert [m async for m in world.img.StreamImages(pb.StreamImagesRequest(filter=none))] == []


async def test_a_row_that_is_long_alone_goes_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        fill(world, 3, "x" * 3_000_000)
        rows, sizes = await streamed(world.cri, "StreamContainers", "containers")
        assert (len(rows), len(sizes)) == (3, 3)
