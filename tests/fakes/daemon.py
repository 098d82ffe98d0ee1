"""A whole runtime over fakes and a real store: can be stopped, killed and started again like the daemon."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from crishim.config.model import Config
from crishim.observe import NullObserver
from crishim.pods.runtime import Runtime
from crishim.pods.views import ContainerFilter, SandboxFilter
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    Metadata,
    SandboxConfig,
)
from crishim.store.store import Store
from tests.fakes.engine import FakeEngine, Process
from tests.fakes.faults import Faults
from tests.fakes.images import NAME, FakeImages
from tests.fakes.network import FakeNetwork
from tests.fakes.planner import FakePlanner


class Counting(NullObserver):
    """An observer that counts leaks and lacks, and remembers phases."""

    def __init__(self) -> None:
        self.leaks: dict[str, int] = {}
        self.phases: list[str] = []
        self.lacks: list[str] = []
        self.merged = 0
        self.ended = 0

    def start_phase(self, step: str, seconds: float) -> None:
        self.phases.append(step)

    def leak_reclaimed(self, kind: str, count: int = 1) -> None:
        self.leaks[kind] = self.leaks.get(kind, 0) + count

    def event_merged(self, count: int = 1) -> None:
        self.merged += count

    def events_ended(self) -> None:
        self.ended += 1

    def degraded(self, what: str) -> None:
        self.lacks.append(what)


class Daemon:
    """The world (`engine`, `network`, `images`, the directory) stays; the runtime comes and goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = Config(root=f"{directory}/root", state=f"{directory}/state")
        self.paths = self.config.paths
        for path in (self.paths.root, self.paths.state, f"{directory}/logs", f"{directory}/groups"):
            os.makedirs(path, exist_ok=True)
        self.faults = Faults()
        self.engine = FakeEngine(self.faults)
        self.network = FakeNetwork(self.faults)
        self.images = FakeImages(self.faults)
        self.observer = Counting()
        self.boot_id = "boot-1"
        self.store: Store
        self.runtime: Runtime

    async def start(self) -> Runtime:
        """Start a runtime over what is there."""
        self.observer = Counting()
        self.store = Store.open(self.paths.database)
        planner = FakePlanner(self.faults, self.paths, f"{self.directory}/groups")
        self.runtime = Runtime(
            self.config,
            self.store,
            self.engine,
            self.images,
            self.network,
            planner,
            self.observer,
            boot_id=self.boot_id,
        )
        await self.runtime.start()
        return self.runtime

    async def stop(self) -> None:
        """End the runtime in order."""
        await self.runtime.close()
        self.store.close()

    async def restart(self) -> Runtime:
        """End and start."""
        await self.stop()
        return await self.start()

    def crash(self) -> None:
        """Let go of the runtime as SIGKILL would: nothing more reaches it, nothing is finished."""
        for process in self.engine.processes.values():
            process.client = None
        self.store.close()

    def reboot(self) -> None:
        """What a reboot does: processes, state and kernel objects are gone."""
        self.engine.processes.clear()
        self.engine.kernel.clear()
        self.boot_id = f"{self.boot_id}+"

    def process(self, sandbox_id: str) -> Process:
        """Return the keeper's process of a sandbox."""
        return self.engine.processes[sandbox_id]

    def left(self) -> dict[str, object]:
        """Return everything that exists anywhere: empty values when nothing is left."""
        home = self.paths.containers
        return {
            "sandboxes": [view.id for view in self.runtime.sandboxes(SandboxFilter())],
            "containers": [view.id for view in self.runtime.containers(ContainerFilter())],
            "rows": [*self.store.sandboxes.load(), *self.store.containers.load()],
            "kernel": sorted(self.engine.kernel),
            "keepers": [p.pod_id for p in self.engine.processes.values() if p.alive],
            "network": sorted(self.network.attached),
            "holds": sorted(self.images.holds),
            "layers": sorted(name for name in os.listdir(home) if name != ".gone"),
        }


NOTHING: dict[str, object] = {
    "sandboxes": [],
    "containers": [],
    "rows": [],
    "kernel": [],
    "keepers": [],
    "network": [],
    "holds": [],
    "layers": [],
}


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Daemon]:
    """Give a started daemon, and end it."""
    daemon = Daemon(directory)
    await daemon.start()
    try:
        yield daemon
    finally:
        await daemon.stop()


def pod(name: str = "web", attempt: int = 0, **fields: object) -> SandboxConfig:
    """Return a sandbox's request."""
    return SandboxConfig(Metadata(name, f"uid-{name}", "default", attempt), **fields)  # type: ignore[arg-type]


def app(name: str = "app", attempt: int = 0, **fields: object) -> ContainerConfig:
    """Return a container's request."""
    fields.setdefault("image", ImageSpec(NAME))
    return ContainerConfig(ContainerMetadata(name, attempt), **fields)  # type: ignore[arg-type]
