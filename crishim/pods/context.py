"""What every part of `pods/` works with: the objects of one runtime and those it was handed, in one place.

Nothing here acts. Out of scope: making these things (daemon).
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from crishim import clock
from crishim.config.model import Config
from crishim.engine.capture import Pool
from crishim.images.model import ImagesApi
from crishim.log import get_logger
from crishim.observe import Observer
from crishim.paths import Paths
from crishim.pods.admission.abilities import Abilities
from crishim.pods.events import Bus, Event, EventType
from crishim.pods.flight import Flights
from crishim.pods.layers import ContainerLayers
from crishim.pods.objects import Container, Sandbox
from crishim.pods.ports import Engine, Network, Planner
from crishim.pods.registry import Registry
from crishim.pods.stats import Stats

log = get_logger("crishim.pods")


def report(key: str, error: BaseException) -> None:
    """Log the failure of work whose callers have all gone."""
    log.error("work without a caller failed", work=key, error=str(error), notes=getattr(error, "__notes__", None))


@dataclass(slots=True)
class Context:
    """The parts of one runtime.

    `outputs` is the memory of all ExecSync calls. `makes` are calls whose result a later retry may fetch (run, create,
    start); `ends` are idempotent ones.
    """

    config: Config
    paths: Paths
    registry: Registry
    engine: Engine
    images: ImagesApi
    network: Network
    planner: Planner
    observer: Observer
    layers: ContainerLayers
    stats: Stats
    bus: Bus
    abilities: Abilities
    boot_id: str
    outputs: Pool
    makes: Flights[str] = field(default_factory=lambda: Flights(report))
    ends: Flights[None] = field(default_factory=lambda: Flights(report, keep=False))

    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    recovering: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run work that nobody has to wait for; its failure is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def recover(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a part of the start that may last; the next start begins it anew where this daemon ends before."""
        task = self.spawn(work, name)
        self.recovering.add(task)
        task.add_done_callback(self.recovering.discard)
        return task

    async def drain(self) -> None:
        """Wait for all that was spawned."""
        for task in self.recovering:
            task.cancel()
        while self.tasks:
            await asyncio.wait(self.tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report(task.get_name(), error)

    def tell(self, kind: EventType, sandbox: Sandbox, container: Container | None = None) -> None:
        """Publish an event of a container, or of the sandbox itself, with the pod as it is now."""
        if self.bus.active:
            identifier = sandbox.id if container is None else container.id
            inside = tuple([inner.view for inner in sandbox.containers.values()])
            self.bus.publish(Event(kind, identifier, clock.now(), sandbox.view, inside))
