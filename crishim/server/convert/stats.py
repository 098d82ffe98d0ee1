"""Usage of containers and sandboxes → CRI messages, encoded with the attributes kept from call to call.

Attributes (id, metadata, labels, annotations) rarely change and are half of an entry's cost; they are field 1 of
ContainerStats and PodSandboxStats, and protobuf reads a message put together from two encoded parts as one. What is
None in a view stays unset: kubelet takes an unset figure for unknown and a 0 for a measurement.
"""

from collections.abc import Iterable, Iterator

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.views import (
    ContainerStats,
    ContainerView,
    CpuStats,
    FsStats,
    InterfaceStats,
    IoStats,
    MemoryStats,
    Pressure,
    Psi,
    SandboxStats,
    SandboxView,
    SwapStats,
)
from crishim.server.convert.rows import FIELD_1, Rows, record
from crishim.server.convert.status import container_metadata, sandbox_metadata

_LINUX = b"\x12"
"""Tag of PodSandboxStats.linux (field 2)."""
_CONTAINERS = b"\x2a"
"""Tag of LinuxPodSandboxStats.containers (field 5)."""


class StatsEncoder:
    """Encodes all four answers; keeps the encoded attributes by view."""

    def __init__(self) -> None:
        self._containers: Rows[ContainerView] = Rows(_container_attributes)
        self._sandboxes: Rows[SandboxView] = Rows(_sandbox_attributes)

    def container_answer(self, stats: ContainerStats) -> bytes:
        """Return ContainerStatsResponse."""
        return record(FIELD_1, self._container(stats))

    def containers(self, items: Iterable[ContainerStats], *, whole: bool) -> Iterator[bytes]:
        """Yield ListContainerStatsResponse's rows; with `whole`, attributes of what is not among them are dropped."""
        seen = []
        for item in items:
            seen.append(item.view)
            yield record(FIELD_1, self._container(item))
        if whole:
            self._containers.retain(seen)

    def sandbox_answer(self, stats: SandboxStats) -> bytes:
        """Return PodSandboxStatsResponse."""
        return record(FIELD_1, self._sandbox(stats))

    def sandboxes(self, items: Iterable[SandboxStats], *, whole: bool) -> Iterator[bytes]:
        """Yield ListPodSandboxStatsResponse's rows; with `whole`, attributes of what is not among them are dropped."""
        seen, inside = [], []
        for item in items:
            seen.append(item.view)
            inside += [inner.view for inner in item.containers]
            yield record(FIELD_1, self._sandbox(item))
        if whole:
            self._sandboxes.retain(seen)
            self._containers.retain(inside)

    def _container(self, stats: ContainerStats) -> bytes:
        return self._containers.row(stats.view) + container_usage(stats).SerializeToString()

    def _sandbox(self, stats: SandboxStats) -> bytes:
        linux = sandbox_usage(stats).SerializeToString()
        inner = b"".join([record(_CONTAINERS, self._container(item)) for item in stats.containers])
        return self._sandboxes.row(stats.view) + record(_LINUX, linux + inner)


def container_usage(stats: ContainerStats) -> pb.ContainerStats:
    """Return ContainerStats without its attributes."""
    return pb.ContainerStats(
        cpu=None if stats.cpu is None else _cpu(stats.cpu),
        memory=None if stats.memory is None else _memory(stats.memory),
        writable_layer=None if stats.writable_layer is None else filesystem(stats.writable_layer),
        swap=None if stats.swap is None else _swap(stats.swap),
        io=None if stats.io is None else _io(stats.io),
    )


def sandbox_usage(stats: SandboxStats) -> pb.LinuxPodSandboxStats:
    """Return LinuxPodSandboxStats without its containers."""
    return pb.LinuxPodSandboxStats(
        cpu=None if stats.cpu is None else _cpu(stats.cpu),
        memory=None if stats.memory is None else _memory(stats.memory),
        network=_network(stats) if stats.interfaces else None,
        process=None
        if stats.process_count is None
        else pb.ProcessUsage(timestamp=stats.process_timestamp, process_count=_number(stats.process_count)),
        io=None if stats.io is None else _io(stats.io),
    )


def filesystem(usage: FsStats) -> pb.FilesystemUsage:
    """Return the usage of a part of a file system."""
    return pb.FilesystemUsage(
        timestamp=usage.timestamp,
        fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
        used_bytes=_number(usage.used_bytes),
        inodes_used=_number(usage.inodes_used),
    )


def _container_attributes(view: ContainerView) -> pb.ContainerAttributes:
    return pb.ContainerAttributes(
        id=view.id,
        metadata=container_metadata(view.metadata),
        labels=view.config.labels,
        annotations=view.config.annotations,
    )


def _sandbox_attributes(view: SandboxView) -> pb.PodSandboxAttributes:
    return pb.PodSandboxAttributes(
        id=view.id, metadata=sandbox_metadata(view.metadata), labels=view.labels, annotations=view.annotations
    )


def _number(value: int) -> pb.UInt64Value:
    """Return a counter; a kernel that counts backwards for a moment must not break the whole answer."""
    return pb.UInt64Value(value=max(value, 0))


def _maybe(value: int | None) -> pb.UInt64Value | None:
    return None if value is None else _number(value)


def _psi(pressure: Pressure | None) -> pb.PsiStats | None:
    if pressure is None:
        return None
    return pb.PsiStats(Full=_psi_data(pressure.full), Some=_psi_data(pressure.some))


def _psi_data(psi: Psi) -> pb.PsiData:
    return pb.PsiData(Total=psi.total, Avg10=psi.avg10, Avg60=psi.avg60, Avg300=psi.avg300)


def _cpu(stats: CpuStats) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=stats.timestamp,
        usage_core_nano_seconds=_number(stats.usage_core_nano_seconds),
        usage_nano_cores=_maybe(stats.usage_nano_cores),
        psi=_psi(stats.psi),
    )


def _memory(stats: MemoryStats) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        timestamp=stats.timestamp,
        working_set_bytes=_number(stats.working_set_bytes),
        available_bytes=_maybe(stats.available_bytes),
        usage_bytes=_number(stats.usage_bytes),
        rss_bytes=_number(stats.rss_bytes),
        page_faults=_number(stats.page_faults),
        major_page_faults=_number(stats.major_page_faults),
        psi=_psi(stats.psi),
    )


def _swap(stats: SwapStats) -> pb.SwapUsage:
    return pb.SwapUsage(
        timestamp=stats.timestamp,
        swap_available_bytes=_maybe(stats.available_bytes),
        swap_usage_bytes=_number(stats.usage_bytes),
    )


def _io(stats: IoStats) -> pb.IoUsage:
    return pb.IoUsage(timestamp=stats.timestamp, psi=_psi(stats.psi))


def _network(stats: SandboxStats) -> pb.NetworkUsage:
    first, *others = stats.interfaces
    return pb.NetworkUsage(
        timestamp=stats.network_timestamp,
        default_interface=_interface(first),
        interfaces=[_interface(item) for item in others],
    )


def _interface(stats: InterfaceStats) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=stats.name,
        rx_bytes=_number(stats.rx_bytes),
        rx_errors=_number(stats.rx_errors),
        tx_bytes=_number(stats.tx_bytes),
        tx_errors=_number(stats.tx_errors),
    )
