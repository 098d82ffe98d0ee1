"""An engine without a kernel: pods and containers are entries of dictionaries that outlive the daemon's objects.

It keeps the real one's promises: a keeper journals exits until they are acknowledged, tells a new daemon what runs
and what ended, and reports its own death once. What would be left in the kernel is `kernel` and `keepers`.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crishim import clock
from crishim.engine.capture import Pool
from crishim.engine.plan.types import ExecPlan, PodPlan
from crishim.errors import UnavailableError
from crishim.request import ResolvedUser
from tests.fakes.faults import Faults

SIGTERM = 15


@dataclass(frozen=True)
class FakeStarted:
    pid: int
    start_time: int
    started_at: int
    user: ResolvedUser | None = field(default_factory=lambda: ResolvedUser(0, 0))


@dataclass(frozen=True)
class FakeExit:
    seq: int
    container_id: str
    exit_code: int
    oom_killed: bool
    finished_at: int


@dataclass
class Program:
    """How a container behaves: ends at start with `ends_with`, at SIGTERM, at SIGKILL."""

    ends_with: int | None = None
    minds_term: bool = True
    minds_kill: bool = True


@dataclass
class Process:
    """A keeper's process and all that it knows."""

    pod_id: str
    alive: bool = True
    running: dict[str, FakeStarted] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    journal: list[FakeExit] = field(default_factory=list)
    signals: list[tuple[str, int]] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    seq: int = 0
    client: "FakeKeeper | None" = None

    def end(self, container_id: str, exit_code: int, *, oom_killed: bool = False) -> None:
        """Let a container end."""
        if self.running.pop(container_id, None) is None:
            return
        self.seq += 1
        entry = FakeExit(self.seq, container_id, exit_code, oom_killed, clock.now())
        self.journal.append(entry)
        self.tell(entry)

    def tell(self, entry: FakeExit) -> None:
        """Send an entry, again if need be."""
        if self.client is not None and self.client.on_exit is not None:
            self.client.on_exit(entry)

    def die(self) -> None:
        """End the keeper as a crash would."""
        self.alive = False
        if self.client is not None and self.client.on_lost is not None:
            self.client.on_lost()


class FakeKeeper:
    """A daemon's handle of one keeper."""

    def __init__(self, engine: "FakeEngine", process: Process, files: int = -1) -> None:
        self._engine = engine
        self._faults = engine.faults
        self.process = process
        self.pid = 4711
        self.start_time = 1  # no process of this machine began in its first tick, so none is taken for it
        self.files_fd = files
        self.netns_fd = -1
        self.netlink_fd = -1
        self.running = dict(process.running)
        self.exits = list(process.journal)
        self.on_exit: Callable[[FakeExit], object] | None = None
        self.on_lost: Callable[[], object] | None = None
        process.client = self

    async def start_container(self, plan: bytes) -> FakeStarted:
        await self._reach("keeper.start_container")
        process = self.process
        started = FakeStarted(1000 + len(process.programs), 7, clock.now())
        container_id = json.loads(plan)["container_id"]
        process.running[container_id] = started
        program = self._engine.program
        process.programs[container_id] = program
        if program.ends_with is not None:
            process.end(container_id, program.ends_with)
        return started

    async def signal(self, container_id: str, signum: int) -> None:
        await self._reach("keeper.signal")
        self.process.signals.append((container_id, signum))
        if self.process.programs[container_id].minds_term:
            self.process.end(container_id, 128 + signum)

    async def kill(self, container_id: str) -> None:
        await self._reach("keeper.kill")
        if container_id in self.process.programs and self.process.programs[container_id].minds_kill:
            self.process.end(container_id, 137)

    async def exec_sync(
        self,
        container_id: str,
        plan: ExecPlan,
        timeout: float,
        limit: int,
        pool: Pool | None = None,
    ) -> tuple[bytes, bytes, int]:
        await self._reach("keeper.exec_sync")
        return " ".join(plan.process.argv).encode()[:limit], str(timeout).encode(), 3

    async def reopen_log(self, container_id: str) -> None:
        await self._reach("keeper.reopen_log")
        self.process.reopened.append(container_id)

    async def ack(self, seq: int) -> None:
        self._faults.step("keeper.ack")
        self.process.journal = [entry for entry in self.process.journal if entry.seq != seq]

    def give_up(self) -> None:
        self.process.die()

    def detach(self) -> None:
        self.process.client = None

    async def stop(self) -> None:
        await self._faults.wait("keeper.stop")
        self.on_lost = None
        self.process.alive = False
        self.process.running.clear()

    async def _reach(self, step: str) -> None:
        await self._faults.wait(step)
        if not self.process.alive:
            raise UnavailableError("the keeper is gone")


class FakeEngine:
    """Makes keepers; `kernel` holds the ids of pods that have something in the kernel."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.program = Program()
        self.processes: dict[str, Process] = {}
        self.kernel: set[str] = set()
        self._directories: dict[str, str] = {}

    async def start_pod(self, plan: PodPlan) -> FakeKeeper:
        await self.faults.wait("engine.start_pod")
        process = self.processes[plan.pod_id] = Process(plan.pod_id)
        self.kernel.add(plan.pod_id)
        self._directories[plan.pod_id] = plan.directory
        os.makedirs(plan.directory, exist_ok=True)
        return FakeKeeper(self, process, os.open(plan.directory, os.O_RDONLY | os.O_DIRECTORY))

    async def adopt(self, pod_id: str) -> FakeKeeper | None:
        await self.faults.wait("engine.adopt")
        process = self.processes.get(pod_id)
        return FakeKeeper(self, process) if process is not None and process.alive else None

    def journal(self, pod_id: str) -> Sequence[FakeExit]:
        process = self.processes.get(pod_id)
        return list(process.journal) if process is not None else []

    def remove_pod(self, pod_id: str, group: str) -> None:
        assert group.endswith(pod_id)
        self.faults.step("engine.remove_pod")
        self.kernel.discard(pod_id)
        shutil.rmtree(self._directories.pop(pod_id, ""), ignore_errors=True)
        self.processes.pop(pod_id, None)
