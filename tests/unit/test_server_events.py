"""GetContainerEvents on the real grpc server: heads, order, slow readers, ends."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.events import Event, EventType
from crishim.server.convert import pods
from crishim.server.convert.status import container_status
from tests.fakes.cri_backend import NOW, container_view, sandbox_view
from tests.unit.test_server_rpc import CODE, World, serving


def event(number: int, kind: EventType = EventType.STARTED, note: str = "") -> Event:
    pod, inside = sandbox_view(number), container_view(number)
    inside.config.annotations["note"] = note  # type: ignore[index]
    return Event(kind, inside.id, NOW + number, pod, (inside,))


async def subscribed(world: World) -> Any:
    """Return a call that has its head, so the subscription stands."""
    call = world.cri.GetContainerEvents(pb.GetEventsRequest())
    await call.initial_metadata()
    assert world.runtime.bus.active
    return call


async def to_the_end(call: Any) -> tuple[list[Any], grpc.aio.AioRpcError]:
    """Read a call that ends with an error; return its messages and the error."""
    got: list[Any] = []
    try:
        async for message in call:
            got.append(message)  # noqa: PERF401  what came before the error counts
    except grpc.aio.AioRpcError as error:
        return got, error
    raise AssertionError("the call has ended without an error")


async def test_each_subscriber_gets_the_pod_with_each_event(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        calls = [await subscribed(world) for _ in range(3)]
        for number in (1, 2):
            world.runtime.bus.publish(event(number))
        for call in calls:
            first, second = await call.read(), await call.read()
            assert first.container_id == container_view(1).id
            assert first.container_event_type == pb.CONTAINER_STARTED_EVENT
            assert first.created_at == NOW + 1
            assert first.pod_sandbox_status.metadata.uid == "uid-1"
            assert first.pod_sandbox_status.network.ip == "10.0.0.1"
            (inside,) = first.containers_statuses
            assert (inside.id, inside.state, inside.started_at) == (first.container_id, pb.CONTAINER_RUNNING, NOW + 2)
            assert second.container_id == container_view(2).id
            call.cancel()
        async with asyncio.timeout(20):
            while world.runtime.bus.active:  # who has left is forgotten
                await asyncio.sleep(0.01)


async def test_statuses_are_encoded_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    def counted(view: Any) -> Any:
        encoded.append(view.id)
        return container_status(view)

    monkeypatch.setattr(pods, "container_status", counted)
    async with serving(tmp_path) as world:
        calls = [await subscribed(world) for _ in range(4)]
        for kind in EventType:
            world.runtime.bus.publish(Event(kind, "other", NOW, sandbox_view(1), (container_view(1),)))
        for call in calls:
            assert [(await call.read()).container_event_type for _ in range(4)] == [0, 1, 2, 3]
            call.cancel()
    assert encoded == [container_view(1).id]


async def test_a_client_that_does_not_read_gets_an_error_and_not_a_gap(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        call = await subscribed(world)
        sent = 0
        async with asyncio.timeout(60):
            while world.runtime.bus.active:
                world.runtime.bus.publish(event(sent, note="x" * 100_000))
                sent += 1
                await asyncio.sleep(0)
        got, error = await to_the_end(call)
        assert error.code() is CODE.ABORTED
        assert "list pods and containers" in str(error.details())
        assert [message.created_at - NOW for message in got] == list(range(len(got)))
        assert len(got) < sent


async def test_the_daemons_end_ends_the_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        reading, stuck = await subscribed(world), await subscribed(world)
        for number in range(4):
            world.runtime.bus.publish(event(number, note="x" * 1_000_000))
        world.runtime.bus.close()
        async with asyncio.timeout(20):
            await world.server.calls.wait_idle()  # also of the one that is not read
        _, error = await to_the_end(reading)
        assert error.code() is CODE.UNAVAILABLE
        assert "the daemon is ending" in str(error.details())
        stuck.cancel()
        late = world.cri.GetContainerEvents(pb.GetEventsRequest())
        with pytest.raises(grpc.aio.AioRpcError, match="the daemon is ending"):
            await late.read()


async def test_the_status_has_what_the_events_have(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        answer = await world.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_view(1).id))
        assert [inside.id for inside in answer.containers_statuses] == [container_view(1).id]
        assert answer.timestamp > NOW - 10**18
