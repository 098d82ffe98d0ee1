"""Container events of real containers: each life step once, in order, with the pod as it is then (EventedPLEG)."""

import asyncio
from typing import Any

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.cri import Cri
from tests.support.instance import Instance
from tests.support.world import World

CREATED, RUNNING, EXITED = "CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED"


async def subscribed(cri: Cri) -> Any:
    """Return a stream of events whose head has come: what happens from now on is in it."""
    call = cri.runtime.GetContainerEvents(api.GetEventsRequest())
    await call.initial_metadata()
    return call


def shown(event: Any) -> tuple[str, str, str, list[str]]:
    """Return kind, subject, the sandbox's state and the containers' states."""
    kind = api.ContainerEventType.Name(event.container_event_type).removeprefix("CONTAINER_").removesuffix("_EVENT")
    sandbox = api.PodSandboxState.Name(event.pod_sandbox_status.state).removeprefix("SANDBOX_")
    return kind, event.container_id, sandbox, [api.ContainerState.Name(c.state) for c in event.containers_statuses]


async def test_a_life_in_events(world: World) -> None:
    streams = [await subscribed(world.cri) for _ in range(3)]
    listed = await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())
    assert not listed.items
    pod = await world.pod()
    first = await world.run(pod, "exit 3")
    await world.cri.wait_exit(first)
    second = await world.run(pod, "sleep 600")
    await world.cri.stop(second)
    await world.cri.remove(first)
    await world.cri.remove_pod(pod.id)
    for stream in streams:
        heard = [await stream.read() for _ in range(12)]
        assert [shown(event) for event in heard] == [
            ("CREATED", pod.id, "READY", []),
            ("STARTED", pod.id, "READY", []),
            ("CREATED", first, "READY", [CREATED]),
            ("STARTED", first, "READY", [RUNNING]),
            ("STOPPED", first, "READY", [EXITED]),
            ("CREATED", second, "READY", [EXITED, CREATED]),
            ("STARTED", second, "READY", [EXITED, RUNNING]),
            ("STOPPED", second, "READY", [EXITED, EXITED]),
            ("DELETED", first, "READY", [EXITED]),
            ("STOPPED", pod.id, "NOTREADY", [EXITED]),
            ("DELETED", second, "NOTREADY", []),
            ("DELETED", pod.id, "NOTREADY", []),
        ]
        assert all(event.pod_sandbox_status.metadata.uid == pod.config["metadata"]["uid"] for event in heard)
        ended = heard[4].containers_statuses[0]
        assert (ended.exit_code, ended.reason, ended.finished_at > ended.started_at) == (3, "Error", True)
        # kubelet takes created_at for the age of the statuses: they are never older than what they show
        assert heard[4].created_at >= ended.finished_at
        assert [event.created_at for event in heard] == sorted(event.created_at for event in heard)
        stream.cancel()


async def test_a_failed_start_is_an_end_in_events(world: World) -> None:
    pod = await world.pod()
    stream = await subscribed(world.cri)
    container = await world.cri.create(pod.id, world.config(["/no/such/program"]), pod.config)
    with pytest.raises(grpc.aio.AioRpcError):
        await world.cri.start(container)
    heard = [await stream.read() for _ in range(2)]
    assert [shown(event) for event in heard] == [
        ("CREATED", container, "READY", [CREATED]),
        ("STOPPED", container, "READY", [EXITED]),
    ]
    assert heard[1].containers_statuses[0].reason == "StartError"
    stream.cancel()


async def test_the_status_of_a_pod_has_its_containers_and_a_time(world: World) -> None:
    pod = await world.pod()
    inside = [await world.run(pod, "sleep 600") for _ in range(2)]
    answer = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert [status.id for status in answer.containers_statuses] == inside
    assert answer.timestamp >= answer.containers_statuses[1].started_at > 0


async def test_streams_end_with_the_daemon(instance: Instance) -> None:
    async with Cri(instance.socket) as cri:
        stream = await subscribed(cri)
        ending = asyncio.get_running_loop().run_in_executor(None, instance.stop)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        await ending
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the daemon is ending: subscribe again when it is back"
