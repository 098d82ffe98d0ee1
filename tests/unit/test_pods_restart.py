"""What a new daemon makes of what an old one left: orderly ends, kills at every step, reboots, broken rows."""

import asyncio
import os
from pathlib import Path

import pytest

from crishim import codec
from crishim.engine.plan.types import ContainerPlan
from crishim.ids import new_id
from crishim.pods.views import ContainerFilter, ContainerState, SandboxFilter, SandboxState
from tests.fakes.daemon import NOTHING, Daemon, app, pod, running
from tests.fakes.engine import Process
from tests.fakes.images import IMAGE

RUNNING, EXITED, CREATED = ContainerState.RUNNING, ContainerState.EXITED, ContainerState.CREATED


async def _pod(daemon: Daemon, *, start: bool = True, name: str = "web") -> tuple[str, str]:
    pod_id = await daemon.runtime.run_sandbox(pod(name), "")
    container_id = await daemon.runtime.create_container(pod_id, app(), None)
    if start:
        await daemon.runtime.start_container(container_id)
    return pod_id, container_id


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        made = await daemon.runtime.create_container(pod_id, app("made"), None)
        before = daemon.runtime.sandboxes(SandboxFilter()), daemon.runtime.containers(ContainerFilter())
        await daemon.restart()
        assert (daemon.runtime.sandboxes(SandboxFilter()), daemon.runtime.containers(ContainerFilter())) == before
        assert daemon.observer.leaks == {}
        await daemon.runtime.start_container(made)  # its plan is computed anew
        assert daemon.runtime.container(made).state is RUNNING
        assert (await daemon.runtime.exec_sync(container_id, ["id"], 0)).exit_code == 3
        await daemon.runtime.stop_container(container_id, 1)
        assert daemon.runtime.container(container_id).exit_code == 131
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_a_lost_plan_is_computed_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        _, container_id = await _pod(daemon)
        plan = Path(daemon.paths.container(container_id), "plan.json")
        before = (await daemon.runtime.container_info(container_id))["plan"]
        plan.write_text('{"container_')  # cut off by a power failure
        await daemon.restart()
        assert (await daemon.runtime.container_info(container_id))["plan"] == before
        assert (await daemon.runtime.exec_sync(container_id, ["id"], 0)).exit_code == 3


async def test_exit_while_the_daemon_is_away(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        daemon.crash()
        daemon.process(pod_id).end(container_id, 7)
        finished = daemon.process(pod_id).journal[0].finished_at
        await daemon.start()
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason, view.finished_at) == (EXITED, 7, "Error", finished)
        await asyncio.sleep(0)
        assert daemon.process(pod_id).journal == []


async def test_exit_that_nobody_journalled(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        daemon.crash()
        daemon.process(pod_id).running.clear()
        await daemon.start()
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 255, "Unknown")


async def test_start_that_was_not_committed(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon, start=False)
        other = await daemon.runtime.create_container(pod_id, app("other"), None)
        daemon.crash()
        keeper = await daemon.engine.adopt(pod_id)
        assert keeper is not None
        await keeper.start_container(codec.frozen(_plan(daemon, container_id)))
        await keeper.start_container(codec.frozen(_plan(daemon, other)))
        daemon.process(pod_id).end(other, 4)
        await daemon.start()
        assert daemon.runtime.container(container_id).state is RUNNING
        assert daemon.runtime.container(other).exit_code == 4


def _plan(daemon: Daemon, container_id: str) -> ContainerPlan:
    container = daemon.runtime._context.registry.containers.get(container_id)
    assert container.plan is not None
    return container.plan


async def test_container_that_runs_though_it_was_given_up(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        started = daemon.process(pod_id).running[container_id]
        await daemon.runtime.stop_container(container_id, 0)
        daemon.crash()
        daemon.process(pod_id).running[container_id] = started
        await daemon.start()
        assert daemon.process(pod_id).running == {}


async def test_dead_keeper_at_start(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        daemon.crash()
        daemon.process(pod_id).alive = False
        await daemon.start()
        assert daemon.runtime.sandbox(pod_id).state is SandboxState.NOTREADY
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 255, "KeeperLost")
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_reboot(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        other, _ = await _pod(daemon, name="other", start=False)
        daemon.crash()
        daemon.reboot()
        daemon.faults.fail("network.detach")  # of one of the two: the next stop tries again
        await daemon.start()
        assert {view.state for view in daemon.runtime.sandboxes(SandboxFilter())} == {SandboxState.NOTREADY}
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 255, "Unknown")
        assert len(daemon.network.attached) == 1
        for identifier in (pod_id, other):
            await daemon.runtime.remove_sandbox(identifier)
        assert daemon.left() == NOTHING


async def test_cleared_state_directory(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        daemon.crash()
        daemon.engine.processes.clear()
        await daemon.start()
        assert daemon.runtime.sandbox(pod_id).state is SandboxState.NOTREADY
        assert daemon.runtime.container(container_id).exit_code == 255
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_orphans_are_removed_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await _pod(daemon)
        kept = daemon.left()
        daemon.crash()
        orphan, directory, group, pin = new_id(), new_id(), new_id(), new_id()
        daemon.engine.processes[orphan] = Process(orphan)
        daemon.engine.kernel.update({orphan, group, pin})
        os.makedirs(daemon.paths.pod(orphan))
        os.makedirs(f"{daemon.paths.container(directory)}/upper")
        daemon.images.holds[directory] = IMAGE.id
        os.makedirs(f"{daemon.directory}/groups/crishim/{group}")
        os.makedirs(os.path.dirname(daemon.paths.pinned_netns(pin)))
        await daemon.start()
        assert daemon.observer.leaks == {"keeper": 1, "cgroup": 1, "netns": 1, "container_dir": 1}
        left = daemon.left()
        assert {key: left[key] for key in left if key != "rows"} == {key: kept[key] for key in kept if key != "rows"}


async def test_broken_rows_do_not_stop_the_others(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _pod(daemon)
        bad, _ = await _pod(daemon, name="bad")
        daemon.store.sandboxes.update(bad, b'{"spec":{"id":"x"},"status":{}}')
        daemon.crash()
        await daemon.start()
        assert [view.id for view in daemon.runtime.sandboxes(SandboxFilter())] == [pod_id]
        assert [view.id for view in daemon.runtime.containers(ContainerFilter())] == [container_id]
        assert daemon.runtime.container(container_id).state is RUNNING
        assert len(daemon.store.problems) == 2  # the sandbox, and the container that is without it now
        assert await daemon.runtime.run_sandbox(pod("bad"), "") != bad
        await daemon.runtime.remove_sandbox(pod_id)


CRASH_POINTS = [
    ("run", "engine.start_pod"),
    ("run", "network.attach"),
    ("start", "keeper.start_container"),
    ("stop", "keeper.signal"),
    ("stop", "keeper.kill"),
    ("remove", "keeper.kill"),
    ("remove", "network.detach"),
    ("remove", "keeper.stop"),
]


@pytest.mark.parametrize(("call", "step"), CRASH_POINTS)
async def test_daemon_killed_in_the_middle_of(tmp_path: Path, call: str, step: str) -> None:
    """The step never returns to the old daemon; the new one must end with nothing left."""
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        if call == "run":
            work = runtime.run_sandbox(pod(), "")
        else:
            pod_id, container_id = await _pod(daemon, start=call != "start")
            daemon.process(pod_id).programs.setdefault(container_id, daemon.engine.program).minds_term = False
            work = {  # type: ignore[assignment]
                "start": lambda: runtime.start_container(container_id),
                "stop": lambda: runtime.stop_container(container_id, 1 if step == "keeper.signal" else 0),
                "remove": lambda: runtime.remove_sandbox(pod_id),
            }[call]()
        daemon.faults.hold(step)
        caller = asyncio.create_task(work)
        while step not in daemon.faults.waiting:
            await asyncio.sleep(0)
        stuck = asyncio.all_tasks() - {asyncio.current_task()}
        daemon.crash()
        daemon.faults.clear()
        await daemon.start()
        shown = daemon.runtime.sandboxes(SandboxFilter())
        assert len(shown) == (0 if call == "run" else 1)
        if call == "run":
            assert daemon.observer.leaks == {"sandbox": 1}
            await daemon.runtime.run_sandbox(pod(), "")
        for view in daemon.runtime.sandboxes(SandboxFilter()):
            await daemon.runtime.remove_sandbox(view.id)
        assert daemon.left() == NOTHING
        for task in stuck:
            task.cancel()
        await asyncio.wait({caller, *stuck})
