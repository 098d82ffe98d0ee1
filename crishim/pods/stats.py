"""Stats of containers and sandboxes: one sample of each control group, rates, what was written, what was sent.

Everything is read at the moment of the call, from files that stay open, so that a list over 110 pods takes
milliseconds; only what was written is measured in between (`usage`). A group that is gone (its container just ended)
leaves its part out and never empties the list. A sandbox of the host's network has no interfaces.

Out of scope: how files are read (`crishim.linux.cgroups`), and which series a metric has (`cadvisor`).
Source: CRI `ContainerStats`, `PodSandboxStats`.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from crishim import clock
from crishim.images.threads import in_thread
from crishim.linux.cgroups.details import DetailReaders, device_name
from crishim.linux.processes import Census, census
from crishim.pods.cadvisor import ContainerMetrics, Disk, PodMetrics, container_series, pod_series
from crishim.pods.objects import Container, Sandbox
from crishim.pods.rates import Rates
from crishim.pods.usage import Usage
from crishim.pods.views import (
    ContainerState,
    ContainerStats,
    CpuStats,
    FsStats,
    InterfaceStats,
    IoStats,
    MemoryStats,
    Pressure,
    Psi,
    SandboxStats,
    SwapStats,
)

if TYPE_CHECKING:
    from crishim.linux.cgroups.stats import GroupStats, Readers, Stalls
    from crishim.pods.ports import Network, Planner

Interfaces = Mapping[str, InterfaceStats]


class Stats:
    """Makes stats of the runtime's objects."""

    def __init__(self, readers: "Readers", planner: "Planner", network: "Network", usage: Usage) -> None:
        self._readers = readers
        self._planner = planner
        self._network = network
        self._usage = usage
        self._details = DetailReaders(readers)
        self._counting = asyncio.Lock()
        self._rates = Rates()
        self._groups: dict[str, str] = {}

    def container(self, container: Container) -> ContainerStats:
        """Return a container's stats; of one that does not run only what it wrote."""
        view = container.view
        written = self._usage.read(container.id)
        sample = self._sample(container) if view.state is ContainerState.RUNNING else None
        if sample is None:
            return ContainerStats(view=view, cpu=None, memory=None, writable_layer=written, swap=None, io=None)
        return ContainerStats(
            view=view,
            cpu=self._cpu(container.id, sample),
            memory=_memory(sample),
            writable_layer=written,
            swap=_swap(sample),
            io=_io(sample),
        )

    async def metrics(self, sandboxes: Sequence[Sandbox], directory: str) -> Iterator[PodMetrics]:
        """Return what makes the metrics of sandboxes, one by one; of those that are ready when it is their turn.

        What processes have open is counted before, in a thread, since it takes a system call a descriptor.

        Args:
            sandboxes: whose.
            directory: where containers write.
        """
        containers = [c for sandbox in sandboxes for c in sandbox.containers.values() if c.running]
        layout = self._readers.layout
        places = {c.id: layout.directories(self._group(c))[0] for c in containers}
        async with self._counting:
            counted = await in_thread("census", lambda: {key: census(place) for key, place in places.items()})
        return self._metrics(sandboxes, counted, _disk(directory))

    def _metrics(
        self, sandboxes: Sequence[Sandbox], counted: Mapping[str, Census | None], disk: Disk
    ) -> Iterator[PodMetrics]:
        interfaces = self.interfaces()
        now = clock.now()
        for sandbox in sandboxes:
            if not sandbox.ready:
                continue
            own = interfaces.get(sandbox.id)
            group = self._group(sandbox)
            series = pod_series(sandbox.view, self._details.read(group), (own,) if own is not None else (), now)
            inside = []
            for container in sandbox.containers.values():
                details = self._details.read(self._group(container)) if container.running else None
                if details is not None:
                    view, written = container.view, self._usage.read(container.id)
                    figures = container_series(view, details, written, disk, counted.get(container.id), now)
                    inside.append(ContainerMetrics(view, self._group(container), figures))
            yield PodMetrics(sandbox.view, group, series, inside)

    def watch(self, containers: Callable[[], Iterable[Container]]) -> None:
        """Measure in the background what these containers write."""
        layout = self._readers.layout
        name = "cpu.stat" if layout.version == 2 else "cpuacct.usage"

        def files() -> Mapping[str, str]:
            found = [c for c in containers() if c.running or not self._usage.settled(c.id)]
            return {c.id: f"{layout.directory('cpuacct', self._group(c))}/{name}" for c in found}

        self._usage.watch(files)

    def written(self, container_ids: Iterable[str], directory: str) -> FsStats:
        """Return what containers have written, as far as it is known; `directory` is where they have it."""
        return self._usage.total(container_ids, directory)

    def sandbox(self, sandbox: Sandbox, interfaces: Interfaces) -> SandboxStats:
        """Return a sandbox's stats with those of its running containers."""
        now = clock.now()
        sample = self._sample(sandbox) if sandbox.ready else None
        own = interfaces.get(sandbox.id)
        inside = tuple(self.container(c) for c in sandbox.containers.values() if c.running)
        return SandboxStats(
            view=sandbox.view,
            cpu=self._cpu(sandbox.id, sample) if sample else None,
            memory=_memory(sample) if sample else None,
            network_timestamp=now,
            interfaces=(own,) if own is not None else (),
            process_timestamp=sample.timestamp if sample else now,
            process_count=sample.pids if sample else None,
            io=_io(sample) if sample else None,
            containers=inside,
        )

    def interfaces(self) -> Interfaces:
        """Return each pod's default interface, by pod id."""
        return self._network.interface_stats()

    def forget(self, identifier: str) -> None:
        """A container has ended or was removed, or a sandbox is: close its files, drop its samples."""
        group = self._groups.pop(identifier, None)
        if group is not None:
            self._details.forget(group)
            self._readers.forget(group)
        self._rates.forget(identifier)

    def forget_usage(self, container_id: str) -> None:
        """A container was removed."""
        self.forget(container_id)
        self._usage.forget(container_id)

    def close(self) -> None:
        """Close all files."""
        self._details.close()
        self._readers.close()
        self._usage.close()

    def _sample(self, thing: Container | Sandbox) -> "GroupStats | None":
        return self._readers.read(self._group(thing))

    def _group(self, thing: Container | Sandbox) -> str:
        group = self._groups.get(thing.id)
        if group is None:
            if isinstance(thing, Container):
                group = self._planner.container_group(thing.id, thing.sandbox.id, thing.sandbox.spec.config)
            else:
                group = self._planner.pod_group(thing.id, thing.spec.config)
            self._groups[thing.id] = group
        return group

    def _cpu(self, key: str, sample: "GroupStats") -> CpuStats | None:
        if sample.cpu_usage is None:
            return None
        rate = self._rates.rate(key, sample.timestamp, sample.cpu_usage)
        return CpuStats(sample.timestamp, sample.cpu_usage, rate, _pressure(sample.cpu_pressure))


def _memory(sample: "GroupStats") -> MemoryStats | None:
    if sample.memory_usage is None:
        return None
    working_set = sample.working_set or 0
    limit = sample.memory_limit
    return MemoryStats(
        timestamp=sample.timestamp,
        working_set_bytes=working_set,
        usage_bytes=sample.memory_usage,
        rss_bytes=sample.rss or 0,
        available_bytes=None if limit is None else max(limit - working_set, 0),
        page_faults=sample.page_faults,
        major_page_faults=sample.major_page_faults,
        psi=_pressure(sample.memory_pressure),
    )


def _swap(sample: "GroupStats") -> SwapStats | None:
    if sample.swap_usage is None:
        return None
    limit = sample.swap_limit
    available = None if limit is None else max(limit - sample.swap_usage, 0)
    return SwapStats(sample.timestamp, sample.swap_usage, available)


def _io(sample: "GroupStats") -> IoStats | None:
    return None if sample.io_pressure is None else IoStats(sample.timestamp, _pressure(sample.io_pressure))


@lru_cache(maxsize=256)  # of hundreds of idle groups most show the same pressure
def _pressure(stalls: "Stalls | None") -> Pressure | None:
    return None if stalls is None else Pressure(Psi(*stalls.some), Psi(*stalls.full))


def _disk(directory: str) -> Disk:
    """Return the file system of a directory; its device is known by its number (stat(2), st_dev)."""
    room, device = os.statvfs(directory), os.stat(directory).st_dev
    name = device_name(os.major(device), os.minor(device))
    return Disk(name, room.f_blocks * room.f_frsize, room.f_files, room.f_ffree)
