"""The store fails at each commit of each call: nothing runs that is not shown, nothing half-made stays.

Two faults: one commit fails (a passing error), and all fail but deletions (a full disk whose reserve is left).
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import CrishimError, FailedPreconditionError, ResourceExhaustedError
from crishim.pods.views import ContainerFilter, ContainerState, SandboxFilter, SandboxState
from crishim.request import Resources
from crishim.store.database import Database
from tests.fakes.daemon import NOTHING, Daemon, app, pod, running
from tests.fakes.engine import Program
from tests.unit.test_pods_lifecycle import _started

RUNNING, EXITED = ContainerState.RUNNING, ContainerState.EXITED
FULL = "no space left to write the state"


class Commits:
    """Counts the store's commits, and fails one of them, or all from one on."""

    def __init__(self, daemon: Daemon, number: int, *, lasting: bool) -> None:
        self.count = 0
        self.failed: list[str] = []
        self._number = number
        self._lasting = lasting
        self._change = daemon.store._database.change
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(daemon.store._database, "change", self._fail_or_change)

    def _fail_or_change(self, sql: str, values: Sequence[Any] = ()) -> int:
        self.count += 1
        due = self.count == self._number or (self._lasting and self.count > self._number and "DELETE" not in sql)
        if due:
            self.failed.append(sql)
            raise ResourceExhaustedError(FULL)
        return self._change(sql, values)

    def heal(self) -> None:
        self._patch.undo()


def check(daemon: Daemon) -> None:
    """Whatever runs is shown as running, and only what is kept somewhere is held."""
    shown = {view.id: view for view in daemon.runtime.containers(ContainerFilter())}
    pods = {view.id for view in daemon.runtime.sandboxes(SandboxFilter())}
    for pod_id, process in daemon.engine.processes.items():
        assert not process.alive or pod_id in pods, "a keeper of no pod"
        for container_id in process.running:
            assert shown[container_id].state is RUNNING, "a program runs that is not shown"
    assert set(daemon.engine.kernel) <= pods
    assert set(daemon.network.attached) <= pods
    known = {name for name in os.listdir(daemon.paths.containers) if name != ".gone"}
    assert known <= shown.keys()
    assert daemon.images.holds.keys() <= shown.keys()


class Life:
    """All calls of a pod's life, each made again once if it fails."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    async def call(self, method: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        for _ in range(2):
            try:
                return await method(*arguments)
            except CrishimError:
                check(self.daemon)
        return None

    @property
    def starts(self) -> int:
        return self.daemon.faults.reached.count("keeper.start_container")

    async def live(self) -> None:
        runtime = self.daemon.runtime
        sandbox = await self.call(runtime.run_sandbox, pod(), "")
        if sandbox is None:
            return
        for name, ends_with in (("one", None), ("two", 3)):
            self.daemon.engine.program = Program(ends_with=ends_with)
            container = await self.call(runtime.create_container, sandbox, app(name), None)
            if container is None:
                continue
            await self.call(runtime.update_container, container, Resources(cpu_shares=9), {})
            before = self.starts
            await self.call(runtime.start_container, container)
            await self.call(runtime.start_container, container)
            assert self.starts <= before + 1, "a second copy"
            await self.call(runtime.exec_sync, container, ["true"], 0)
            await self.call(runtime.stop_container, container, 1)
            await self.call(runtime.remove_container, container)
        await self.call(runtime.stop_sandbox, sandbox)
        await self.call(runtime.remove_sandbox, sandbox)
        check(self.daemon)


async def _commits(path: Path) -> int:
    async with running(path) as daemon:
        commits = Commits(daemon, 0, lasting=False)
        await Life(daemon).live()
        return commits.count


@pytest.mark.parametrize("lasting", [False, True])
async def test_each_commit_fails(tmp_path: Path, lasting: bool) -> None:
    total = await _commits(tmp_path / "whole")
    assert total > 12
    for number in range(1, total + 1):
        async with running(tmp_path / f"{number}") as daemon:
            commits = Commits(daemon, number, lasting=lasting)
            await Life(daemon).live()
            assert commits.failed
            for view in daemon.runtime.sandboxes(SandboxFilter()):
                if lasting:
                    await daemon.runtime.remove_sandbox(view.id)
            commits.heal()
            for view in daemon.runtime.sandboxes(SandboxFilter()):
                await daemon.runtime.remove_sandbox(view.id)
            assert daemon.left() == NOTHING, f"commit {number}: {commits.failed}"
            await Life(daemon).live()  # the same names are free
            assert daemon.left() == NOTHING


async def test_a_start_that_cannot_be_stored_ends_what_it_started(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        container_id = await runtime.create_container(pod_id, app(), None)
        commits = Commits(daemon, 1, lasting=True)
        with pytest.raises(ResourceExhaustedError, match=FULL):
            await runtime.start_container(container_id)
        view = runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 128, "StartError")
        assert daemon.process(pod_id).running == {}
        assert len(daemon.process(pod_id).journal) == 1, "the next daemon hears of the end"
        with pytest.raises(FailedPreconditionError, match="only a CREATED one"):
            await runtime.start_container(container_id)
        commits.heal()
        daemon.crash()
        runtime = await daemon.start()
        assert runtime.container(container_id).state is EXITED
        assert daemon.process(pod_id).journal == []
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_a_start_that_can_be_neither_stored_nor_ended_is_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        container_id = await runtime.create_container(pod_id, app(), None)
        commits = Commits(daemon, 1, lasting=False)
        daemon.faults.fail("keeper.kill")
        with pytest.raises(ResourceExhaustedError) as caught:
            await runtime.start_container(container_id)
        assert any("keeper.kill" in note for note in caught.value.__notes__)
        assert runtime.container(container_id).state is RUNNING
        commits.heal()
        await runtime.stop_container(container_id, 0)
        assert daemon.process(pod_id).running == {}
        assert runtime.container(container_id).state is EXITED


async def test_a_daemon_starts_though_nothing_can_be_stored(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.start()
    lost, _ = await _started(daemon)
    kept, container = await _started(daemon, "kept")
    daemon.crash()
    daemon.process(lost).alive = False
    daemon.process(kept).end(container, 7)

    def full(self: Database, sql: str, values: Sequence[Any] = ()) -> int:
        raise ResourceExhaustedError(FULL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "change", full)
        runtime = await daemon.start()
        assert runtime.sandbox(lost).state is SandboxState.NOTREADY
        assert runtime.container(container).exit_code == 7
    for view in runtime.sandboxes(SandboxFilter()):
        await runtime.remove_sandbox(view.id)
    assert daemon.left() == NOTHING
    await daemon.stop()


async def test_a_pod_cidr_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.runtime.update_pod_cidr("10.1.0.0/24")
        commits = Commits(daemon, 1, lasting=False)
        with pytest.raises(ResourceExhaustedError):
            await daemon.runtime.update_pod_cidr("10.2.0.0/24")
        commits.heal()
        assert daemon.network.subnets == ("10.1.0.0/24",)
        daemon.faults.fail("network.use_pod_cidr")
        with pytest.raises(CrishimError):
            await daemon.runtime.update_pod_cidr("10.3.0.0/24")
        assert daemon.store.values.get("network.pod_cidr") == ["10.1.0.0/24"]
