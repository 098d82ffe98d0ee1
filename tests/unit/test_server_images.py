"""crishim.v1.Images over the real grpc server: streams with progress, cancellation, errors; no kernel behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim._proto.crishim.v1 import images_pb2_grpc as rpc
from crishim.errors import UnauthenticatedError
from crishim.images.model import Credentials
from crishim.server.archive_service import ArchiveService
from crishim.server.interceptors import is_quiet
from crishim.server.methods import label, snake
from crishim.server.service import Server
from crishim.server.unimplemented import SENTENCES
from tests.fakes.cri_backend import IMAGE_ID, FakeImages, FakeObserver, FakeRuntime

CODE = grpc.StatusCode
SERVICE = pb.DESCRIPTOR.services_by_name["Images"]


class World:
    """A server with its fakes and a stub."""

    def __init__(self, path: Path) -> None:
        self.images = FakeImages()
        self.observer = FakeObserver()
        socket = str(path / "run" / "cri.sock")
        self.server = Server(FakeRuntime([], []), self.images, socket, self.observer)
        self.socket = socket
        self.stub: Any = None


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[World]:
    made = World(path)
    await made.server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{made.socket}") as channel:
            made.stub = rpc.ImagesStub(channel)
            yield made
    finally:
        await made.server.stop(0)


def test_every_rpc_is_either_served_or_explained() -> None:
    for method in SERVICE.methods:
        assert hasattr(ArchiveService, snake(method.name)) != (label(method) in SENTENCES), method.name
    assert label(SERVICE.methods_by_name["Pull"]) == "Images.Pull"
    assert is_quiet("Images.List")
    assert not is_quiet("Images.Pull")


async def test_a_stream_gives_progress_and_then_the_result(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        given = pb.Credentials(username="u", password="p", identity_token="i")
        answers = [answer async for answer in world.stub.Pull(pb.PullRequest(image="busybox", credentials=given))]
        assert [answer.WhichOneof("event") for answer in answers] == ["progress", "progress", "result"]
        item = answers[0].progress.items[0]
        assert (item.id, item.kind, item.state, item.current, item.total) == (
            "sha256:1",
            "layer",
            pb.STATE_TRANSFERRING,
            5,
            9,
        )
        assert (answers[2].result.id, answers[2].result.digest, answers[2].result.cached) == (
            IMAGE_ID,
            "sha256:2",
            False,
        )
        login = Credentials(username="u", password="p", identity_token="i")
        assert world.images.calls == [("pull_watched", "busybox", login)]
        assert world.observer.finished == [("Images.Pull", "OK")]


async def test_a_stream_whose_caller_leaves_is_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.images.stuck = asyncio.Event()
        call = world.stub.Pull(pb.PullRequest(image="busybox"))
        assert (await call.read()).WhichOneof("event") == "progress"
        call.cancel()
        await world.server.calls.wait_idle()
        assert world.images.calls[-1] == ("cancelled",)
        assert world.observer.finished == [("Images.Pull", "CANCELLED")]


async def test_an_error_ends_a_stream_with_code_and_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as world:
        for call in (world.stub.Pull(pb.PullRequest()), world.stub.Push(pb.PushRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is CODE.INVALID_ARGUMENT
            assert str(caught.value.details()).startswith("image: is missing")

        async def refuse(*_: object) -> None:
            raise UnauthenticatedError("r.io: access denied")

        monkeypatch.setattr(world.images, "push", refuse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stub.Push(pb.PushRequest(image="x")).read()
        assert (caught.value.code(), caught.value.details()) == (CODE.UNAUTHENTICATED, "r.io: access denied")


async def test_names_of_images(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        tagged = await world.stub.Tag(pb.TagRequest(image="a", name="b"))
        removed = await world.stub.Remove(pb.RemoveRequest(image="a", force=True))
        found = await world.stub.List(pb.ListRequest(filter="a*", dangling=True))
        pruned = await world.stub.Prune(pb.PruneRequest(all=True))
        pushed = [answer async for answer in world.stub.Push(pb.PushRequest(image="a", destination="r.io/b:1"))]
        assert (tagged.id, tagged.name) == (IMAGE_ID, "b")
        assert (list(removed.untagged), removed.deleted) == (["a"], IMAGE_ID)
        image = found.images[0]
        assert (image.shared, image.layers[0].unpacked, image.containers, image.platform) == (4, 20, 1, "linux/amd64")
        assert (pruned.images[0].id, pruned.freed) == (IMAGE_ID, 1000)
        assert [answer.WhichOneof("event") for answer in pushed] == ["progress", "result"]
        assert pushed[0].progress.items[0].state == pb.STATE_MOUNTED
        assert pushed[1].result.name == "r.io/b:1"
        assert world.images.calls == [
            ("tag", "a", "b"),
            ("untag", "a", True),
            ("details", "a*", True),
            ("prune", True, False),
            ("push", "a", "r.io/b:1", None),
        ]
