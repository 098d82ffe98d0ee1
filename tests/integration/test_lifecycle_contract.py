"""What kubelet's retry loops rely on: idempotence, names, filters, echoes."""

import asyncio
from typing import Any

import grpc

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.configs import pod_config
from tests.support.cri import attempt, container_message, refused, sandbox_message
from tests.support.world import World

UNKNOWN = "f" * 64
STAY = "sleep 600"


async def test_stop_and_remove_of_unknown_ids_succeed_and_their_status_is_not_found(world: World) -> None:
    runtime = world.cri.runtime
    await runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=UNKNOWN))
    await runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=UNKNOWN))
    await runtime.StopContainer(api.StopContainerRequest(container_id=UNKNOWN))
    await runtime.RemoveContainer(api.RemoveContainerRequest(container_id=UNKNOWN))
    await world.cri.image.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image="127.0.0.1:1/none:1")))
    status = runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=UNKNOWN))
    await refused(status, grpc.StatusCode.NOT_FOUND)
    await refused(world.cri.status(UNKNOWN), grpc.StatusCode.NOT_FOUND)
    await refused(world.cri.start(UNKNOWN), grpc.StatusCode.NOT_FOUND)
    reply = await world.cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image="127.0.0.1:1/none:1")))
    assert not reply.HasField("image")


async def test_stop_and_remove_twice_succeed(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, STAY)
    for _ in range(2):
        await world.cri.stop(container)
    for _ in range(2):
        await world.cri.remove(container)
    for _ in range(2):
        await world.cri.remove_pod(pod.id)


async def test_an_attempt_labels_and_annotations_are_echoed(world: World) -> None:
    pod = await world.pod("echo", attempt=2, labels={"l": "1"}, annotations={"a": "2"})
    config = world.config(STAY, name="c", attempt=3, labels={"cl": "3"}, annotations={"ca": "4"})
    container = await world.cri.create(pod.id, config, pod.config)
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert (reply.status.metadata.attempt, dict(reply.status.labels)) == (2, {"l": "1"})
    assert dict(reply.status.annotations) == {"a": "2"}
    status = await world.cri.status(container)
    assert (status.metadata.name, status.metadata.attempt) == ("c", 3)
    assert (dict(status.labels), dict(status.annotations)) == ({"cl": "3"}, {"ca": "4"})


async def sandboxes(world: World, **wanted: Any) -> set[str]:
    """Return the ids that ListPodSandbox gives for a filter."""
    request = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(**wanted))
    return {row.id for row in (await world.cri.runtime.ListPodSandbox(request)).items}


async def containers(world: World, **wanted: Any) -> set[str]:
    """Return the ids that ListContainers gives for a filter."""
    request = api.ListContainersRequest(filter=api.ContainerFilter(**wanted))
    return {row.id for row in (await world.cri.runtime.ListContainers(request)).containers}


async def test_filters_match_together_and_by_prefix(world: World) -> None:
    one = await world.pod(labels={"app": "a", "tier": "x"})
    two = await world.pod(labels={"app": "a"})
    ready = api.PodSandboxStateValue(state=api.SANDBOX_READY)
    assert await sandboxes(world, label_selector={"app": "a"}) == {one.id, two.id}
    assert await sandboxes(world, label_selector={"app": "a", "tier": "x"}) == {one.id}
    assert await sandboxes(world, id=one.id[:8], state=ready) == {one.id}
    assert await sandboxes(world, id=one.id, label_selector={"tier": "y"}) == set()
    first = await world.run(one, STAY, labels={"k": "v"})
    second = await world.run(two, STAY, labels={"k": "v"})
    assert await containers(world, label_selector={"k": "v"}) == {first, second}
    assert await containers(world, pod_sandbox_id=one.id) == {first}
    exited = api.ContainerStateValue(state=api.CONTAINER_EXITED)
    assert await containers(world, state=exited) == set()
    await world.cri.stop(first)
    assert await containers(world, state=exited) == {first}
    assert await containers(world, id=second[:12], pod_sandbox_id=one.id) == set()


async def test_an_id_may_be_a_prefix_and_an_ambiguous_one_is_refused(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    assert (await world.cri.status(container[:20])).id == container
    many = [
        await world.cri.create(pod.id, world.config(STAY), pod.config) for pod in [await world.pod()] for _ in range(20)
    ]
    first = {c[0] for c in many if sum(other[0] == c[0] for other in many) > 1}
    _, error = await attempt(world.cri.status(min(first)))
    assert error is not None
    assert error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}


async def test_a_retry_after_a_deadline_converges_on_one_sandbox(world: World) -> None:
    config = pod_config("retried", log_directory=f"{world.instance.logs}/retried")
    found = set()
    for seconds in (0.0005, 0.001, 0.002, 0.004, 0.008, 0.02, 20, 20):
        identifier, error = await attempt(world.cri.run_pod(config, timeout=seconds))
        if error is None:
            found.add(identifier)
        else:
            codes = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.ALREADY_EXISTS}
            assert error.code() in codes
    rows = await sandboxes(world)
    assert len(rows) == 1
    assert found <= rows
    next_attempt = {**config, "metadata": {**config["metadata"], "attempt": 1}}
    other = await world.cri.run_pod(next_attempt)
    assert other not in rows
    for identifier in [other, *rows]:
        await world.cri.remove_pod(str(identifier))
    again = await world.cri.run_pod(config)
    await world.cri.remove_pod(again)


async def test_a_container_that_was_asked_for_twice_at_once_is_made_once(world: World) -> None:
    pod = await world.pod()
    config = world.config(STAY, name="twin")
    request = api.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=container_message(config), sandbox_config=sandbox_message(pod.config)
    )
    replies = await asyncio.gather(*(attempt(world.cri.runtime.CreateContainer(request)) for _ in range(8)))
    ids = {reply.container_id for reply, _ in replies if reply is not None}
    assert len(ids) == 1
    assert await containers(world, pod_sandbox_id=pod.id) == ids
    errors = [error for _, error in replies if error is not None]
    assert all(error.code() == grpc.StatusCode.ALREADY_EXISTS for error in errors)


async def test_a_name_belongs_to_its_owner_until_it_is_removed(world: World) -> None:
    pod = await world.pod()
    first = await world.cri.create(pod.id, world.config(STAY, name="taken"), pod.config)
    other = world.config("echo another", name="taken")
    details = await refused(world.cri.create(pod.id, other, pod.config), grpc.StatusCode.ALREADY_EXISTS)
    assert first[:12] in details
    await world.cri.remove(first)
    await world.cri.create(pod.id, other, pod.config)


async def test_a_pod_that_is_not_ready_takes_no_container(world: World) -> None:
    pod = await world.pod()
    await world.cri.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    await refused(world.cri.create(pod.id, world.config(STAY), pod.config), grpc.StatusCode.FAILED_PRECONDITION)
    gone = world.cri.create(UNKNOWN, world.config(STAY), pod.config)
    await refused(gone, grpc.StatusCode.NOT_FOUND)


async def test_what_this_version_lacks_says_so_in_a_sentence(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    calls = [
        world.cri.runtime.Exec(api.ExecRequest(container_id=container, cmd=["true"], stdout=True)),
        world.cri.runtime.Attach(api.AttachRequest(container_id=container, stdout=True)),
        world.cri.runtime.PortForward(api.PortForwardRequest(pod_sandbox_id=UNKNOWN)),
    ]
    for call in calls:
        assert len((await refused(call, grpc.StatusCode.UNIMPLEMENTED)).split()) > 3


async def test_missing_fields_are_named(world: World) -> None:
    pod = await world.pod()
    runtime = world.cri.runtime
    empty = runtime.RunPodSandbox(api.RunPodSandboxRequest())
    assert "config" in await refused(empty, grpc.StatusCode.INVALID_ARGUMENT)
    nameless = world.config(STAY)
    nameless["metadata"] = {}
    call = world.cri.create(pod.id, nameless, pod.config)
    assert "metadata.name" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    imageless = world.config(STAY)
    imageless["image"] = {}
    call = world.cri.create(pod.id, imageless, pod.config)
    assert "image" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    negative = world.config(STAY, resources={"memory_limit_in_bytes": -5})
    call = world.cri.create(pod.id, negative, pod.config)
    assert "memory_limit_in_bytes" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
