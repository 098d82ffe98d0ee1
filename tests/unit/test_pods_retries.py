"""Clients that go away and come again: one pod, one network, one answer in the end."""

import asyncio
from pathlib import Path

import pytest

from crishim.errors import AlreadyExistsError, InternalError
from crishim.pods.views import ContainerFilter, ContainerState, SandboxFilter
from tests.fakes.daemon import NOTHING, app, pod, running


async def _give_up(task: "asyncio.Task[str]") -> None:
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_retries_of_a_slow_run_converge(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        gate = daemon.faults.hold("network.attach")
        for _ in range(3):
            await _give_up(asyncio.create_task(runtime.run_sandbox(pod(), "")))
        with pytest.raises(AlreadyExistsError, match="differs from this one"):
            await runtime.run_sandbox(pod(hostname="other"), "")
        assert runtime.sandboxes(SandboxFilter()) == []  # what is in the making is not shown
        next_attempt = asyncio.create_task(runtime.run_sandbox(pod(attempt=1), ""))
        last = asyncio.create_task(runtime.run_sandbox(pod(), ""))
        await asyncio.sleep(0.005)
        gate.set()
        first, second = await asyncio.gather(last, next_attempt)
        assert {view.id for view in runtime.sandboxes(SandboxFilter())} == {first, second}
        assert daemon.faults.reached.count("engine.start_pod") == 2
        assert len(daemon.network.attached) == 2


async def test_run_that_ends_between_retries_is_found(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        gate = daemon.faults.hold("network.attach")
        await _give_up(asyncio.create_task(runtime.run_sandbox(pod(), "")))
        gate.set()
        await runtime._context.makes.drain(10)
        (view,) = runtime.sandboxes(SandboxFilter())
        assert await runtime.run_sandbox(pod(), "") == view.id
        with pytest.raises(AlreadyExistsError, match=view.id):  # a duplicate is no retry
            await runtime.run_sandbox(pod(), "")


async def test_run_that_fails_without_caller_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        gate = daemon.faults.hold("network.attach")
        await _give_up(asyncio.create_task(daemon.runtime.run_sandbox(pod(), "")))
        daemon.faults.fail("network.attach", InternalError("no"))
        gate.set()
        await daemon.runtime._context.makes.drain(10)
        assert daemon.left() == NOTHING
        await daemon.runtime.run_sandbox(pod(), "")


async def test_start_and_create_are_retried(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        create = asyncio.create_task(runtime.create_container(pod_id, app(), None))
        await asyncio.sleep(0)
        create.cancel()
        with pytest.raises(asyncio.CancelledError):
            await create
        container_id = await runtime.create_container(pod_id, app(), None)
        assert [view.id for view in runtime.containers(ContainerFilter())] == [container_id]

        gate = daemon.faults.hold("keeper.start_container")
        start = asyncio.create_task(runtime.start_container(container_id))
        await asyncio.sleep(0.005)
        start.cancel()
        again = asyncio.create_task(runtime.start_container(container_id))
        stop = asyncio.create_task(runtime.stop_container(container_id, 5))  # waits for the start
        await asyncio.sleep(0.005)
        gate.set()
        await again
        await stop
        assert daemon.faults.reached.count("keeper.start_container") == 1
        assert runtime.container(container_id).state is ContainerState.EXITED


async def test_stop_and_remove_share_their_work(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        container_id = await runtime.create_container(pod_id, app(), None)
        await runtime.start_container(container_id)
        await asyncio.gather(
            *(runtime.stop_sandbox(pod_id) for _ in range(3)),
            *(runtime.remove_sandbox(pod_id) for _ in range(3)),
            *(runtime.remove_container(container_id) for _ in range(3)),
            *(runtime.stop_container(container_id, 1) for _ in range(3)),
        )
        assert daemon.left() == NOTHING
        for step in ("network.detach", "keeper.stop", "engine.remove_pod"):
            assert daemon.faults.reached.count(step) == 1


async def test_stop_of_a_pod_waits_for_what_is_made_in_it(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        container_id = await runtime.create_container(pod_id, app(), None)
        gate = daemon.faults.hold("keeper.start_container")
        start = asyncio.create_task(runtime.start_container(container_id))
        await asyncio.sleep(0.005)
        remove = asyncio.create_task(runtime.remove_sandbox(pod_id))
        await asyncio.sleep(0.005)
        assert not remove.done()
        gate.set()
        await asyncio.gather(start, remove)
        assert daemon.left() == NOTHING
