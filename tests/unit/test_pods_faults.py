"""Faults in the middle of a pod's start and end: each step fails once, and nothing half-made stays."""

from pathlib import Path

import pytest

from crishim.errors import AbortedError, CrishimError, InternalError, UnavailableError
from crishim.pods.events import EventType
from crishim.pods.views import ContainerState, SandboxFilter, SandboxState
from tests.fakes.daemon import NOTHING, pod, running
from tests.unit.test_pods_lifecycle import _started

CREATED, RUNNING, EXITED = ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED

STEPS = {
    "planner.pod": "run",
    "engine.start_pod": "run",
    "network.attach": "run",
    "images.find": "create",
    "images.hold": "create",
    "planner.container": "create",
    "keeper.start_container": "start",
}


@pytest.mark.parametrize("step", STEPS)
async def test_each_step_fails_once(tmp_path: Path, step: str) -> None:
    async with running(tmp_path) as daemon:
        daemon.faults.fail(step)
        with pytest.raises(CrishimError, match="was told to fail"):
            await _started(daemon)
        if STEPS[step] == "run":
            assert daemon.left() == NOTHING
        elif STEPS[step] == "create":
            assert daemon.left()["containers"] == []
            assert daemon.left()["layers"] == []
            assert daemon.images.holds == {}
        for view in daemon.runtime.sandboxes(SandboxFilter()):
            await daemon.runtime.remove_sandbox(view.id)
        assert daemon.left() == NOTHING
        await _started(daemon)  # the same names are free


@pytest.mark.parametrize("undo", ["network.detach", "keeper.stop", "engine.remove_pod"])
async def test_what_cannot_be_undone_stays_listed(tmp_path: Path, undo: str) -> None:
    async with running(tmp_path) as daemon:
        daemon.faults.fail("network.attach")
        daemon.faults.fail(undo)
        with pytest.raises(InternalError) as caught:
            await daemon.runtime.run_sandbox(pod(), "")
        assert any(undo in note for note in caught.value.__notes__)
        (view,) = daemon.runtime.sandboxes(SandboxFilter())
        assert view.state is SandboxState.NOTREADY
        await daemon.runtime.remove_sandbox(view.id)
        assert daemon.left() == NOTHING


async def test_events_of_a_slow_subscriber_merge_and_end_last(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        bus = daemon.runtime._context.bus
        tight, slow, quick = bus.subscribe(length=1), bus.subscribe(length=3), daemon.runtime.events()
        pod_id, container_id = await _started(daemon)
        with pytest.raises(AbortedError, match="list pods and containers, and subscribe again"):
            await anext(tight)
        assert [(e.kind, e.id) for e in [await anext(slow) for _ in range(2)]] == [
            (EventType.STARTED, pod_id),
            (EventType.STARTED, container_id),
        ]
        assert (daemon.observer.merged, daemon.observer.ended) == (3, 1)
        await daemon.runtime.stop_container(container_id, 0)
        last = await anext(slow)
        assert (last.kind, [view.state.name for view in last.containers]) == (EventType.STOPPED, ["EXITED"])
        assert [(await anext(quick)).kind.name for _ in range(5)] == [
            "CREATED",
            "STARTED",
            "CREATED",
            "STARTED",
            "STOPPED",
        ]
        quick.close()
        assert [event async for event in quick] == []
        daemon.runtime.end_events()
        for ended in (slow, daemon.runtime.events()):
            with pytest.raises(UnavailableError, match="the daemon is ending"):
                await anext(ended)
        assert not bus.active
