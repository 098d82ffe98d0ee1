"""What cAdvisor would say of pods and containers, for kubelet's /metrics/cadvisor: descriptors and series. Pure.

Names, kinds, units and labels are cAdvisor's as kubelet serves them without the CRI's figures, so that dashboards and
rules do not see who measures: `id` is the control group, `name` the container's id, `container` and `image` are empty
for what belongs to the pod as a whole. The CRI's values are whole numbers, seconds too. A figure that the host does
not have gives no series; none has a label that grows with use, like a digest.

Sources: cAdvisor's docs/storage/prometheus.md and info/v1; kubelet's server.go (containerPrometheusLabelsFunc);
KEP-2371.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from crishim.linux.cgroups.details import Details, DiskUse, device_name
from crishim.linux.processes import Census
from crishim.pods.views import ContainerView, FsStats, InterfaceStats, SandboxView
from crishim.request import Resources

LABELS = ("container", "id", "image", "name", "namespace", "pod")
"""The labels that every series has, before its own."""

CPU_SHARES = 1024
CPU_PERIOD = 100_000
"""What the kernel has where nothing is asked (sched-bwc.rst)."""

_SECOND = 1_000_000_000
_MICROSECONDS = 1_000_000


class Kind(IntEnum):
    """CRI `MetricType`."""

    COUNTER = 0
    GAUGE = 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One metric; `labels` are its own, after `LABELS`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _descriptors() -> Iterator[Descriptor]:
    for kind, rows in ((Kind.COUNTER, _COUNTERS), (Kind.GAUGE, _GAUGES)):
        for name, text, *labels in rows:
            yield Descriptor(f"container_{name}", kind, text, tuple(labels))


_COUNTERS: tuple[tuple[str, ...], ...] = (
    ("blkio_device_usage_total", "Bytes moved to and from disks.", "device", "major", "minor", "operation"),
    ("cpu_cfs_periods_total", "Periods of CPU bandwidth that have passed."),
    ("cpu_cfs_throttled_periods_total", "Periods of CPU bandwidth in which the container was throttled."),
    ("cpu_cfs_throttled_seconds_total", "Time for which the container was throttled."),
    ("cpu_system_seconds_total", "CPU time in the kernel."),
    ("cpu_usage_seconds_total", "CPU time.", "cpu"),
    ("cpu_user_seconds_total", "CPU time in programs."),
    ("fs_reads_bytes_total", "Bytes read from disks.", "device"),
    ("fs_reads_total", "Reads from disks.", "device"),
    ("fs_writes_bytes_total", "Bytes written to disks.", "device"),
    ("fs_writes_total", "Writes to disks.", "device"),
    ("memory_failcnt", "Times that memory use hit the limit."),
    ("memory_failures_total", "Page faults, minor and major.", "failure_type", "scope"),
    ("network_receive_bytes_total", "Bytes received.", "interface"),
    ("network_receive_errors_total", "Errors in receiving.", "interface"),
    ("network_receive_packets_dropped_total", "Packets dropped in receiving.", "interface"),
    ("network_receive_packets_total", "Packets received.", "interface"),
    ("network_transmit_bytes_total", "Bytes sent.", "interface"),
    ("network_transmit_errors_total", "Errors in sending.", "interface"),
    ("network_transmit_packets_dropped_total", "Packets dropped in sending.", "interface"),
    ("network_transmit_packets_total", "Packets sent.", "interface"),
    ("oom_events_total", "Processes that the kernel killed for want of memory."),
    ("pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU."),
    ("pressure_cpu_waiting_seconds_total", "Time in which some tasks waited for a CPU."),
    ("pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O."),
    ("pressure_io_waiting_seconds_total", "Time in which some tasks waited for I/O."),
    ("pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory."),
    ("pressure_memory_waiting_seconds_total", "Time in which some tasks waited for memory."),
)
_GAUGES: tuple[tuple[str, ...], ...] = (
    ("file_descriptors", "Open descriptors of all processes."),
    ("fs_inodes_free", "Free inodes of the file system with the container's layer.", "device"),
    ("fs_inodes_total", "Inodes of the file system with the container's layer.", "device"),
    ("fs_limit_bytes", "Size of the file system with the container's layer.", "device"),
    ("fs_usage_bytes", "Bytes that the container has written to its layer and volumes.", "device"),
    ("hugetlb_max_usage_bytes", "Most bytes of huge pages used so far.", "pagesize"),
    ("hugetlb_usage_bytes", "Bytes of huge pages in use.", "pagesize"),
    ("last_seen", "When the container was last seen, in seconds since the epoch."),
    ("memory_cache", "Bytes of page cache."),
    ("memory_kernel_usage", "Bytes of memory of the kernel's own."),
    ("memory_mapped_file", "Bytes of mapped files."),
    ("memory_max_usage_bytes", "Most bytes of memory used so far."),
    ("memory_rss", "Bytes of anonymous memory."),
    ("memory_swap", "Bytes in swap."),
    ("memory_usage_bytes", "Bytes of memory in use, page cache included."),
    ("memory_working_set_bytes", "Bytes of memory in use without inactive page cache."),
    ("processes", "Processes."),
    ("sockets", "Open sockets of all processes."),
    ("spec_cpu_period", "Period of CPU bandwidth in microseconds."),
    ("spec_cpu_quota", "CPU time a period in microseconds, where it is limited."),
    ("spec_cpu_shares", "CPU shares."),
    ("spec_memory_limit_bytes", "Limit of memory; 0 without one."),
    ("spec_memory_reservation_limit_bytes", "Memory that is kept for the container; 0 without any."),
    ("spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0 without one."),
    ("start_time_seconds", "When the container started, in seconds since the epoch."),
    ("threads", "Threads."),
    ("threads_max", "Most threads allowed; 0 without a limit."),
    ("ulimits_soft", "Soft limits of the container's first process.", "ulimit"),
)

DESCRIPTORS = tuple(sorted(_descriptors(), key=lambda found: found.name))

Key = tuple[str, ...]
"""A metric's name and the values of its own labels."""
Series = tuple[Key, int, int]
"""A key, its value, and when that was read, in nanoseconds since the epoch."""


class Disk(NamedTuple):
    """The file system on which containers write; bytes and inodes."""

    device: str
    size: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True, slots=True)
class ContainerMetrics:
    """The series of one container; `group` is its control group."""

    view: ContainerView
    group: str
    series: Sequence[Series]


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """The series of one pod as a whole, and its containers'."""

    view: SandboxView
    group: str
    series: Sequence[Series]
    containers: Sequence[ContainerMetrics]


def image_label(view: ContainerView) -> str:
    """Return the name that the user gave the image, as a label: without a digest."""
    return view.image.image.partition("@")[0]


def pod_series(
    view: SandboxView, details: Details | None, interfaces: Sequence[InterfaceStats], now: int
) -> list[Series]:
    """Return the series of a pod as a whole: its group's and its network's."""
    found = [] if details is None else _usage(details)
    for interface in interfaces:
        counters = (
            interface.rx_bytes,
            interface.rx_errors,
            interface.rx_dropped,
            interface.rx_packets,
            interface.tx_bytes,
            interface.tx_errors,
            interface.tx_dropped,
            interface.tx_packets,
        )
        name = interface.name
        found += [((metric, name), count, now) for metric, count in zip(_NETWORK, counters, strict=True)]
    found += [(_START_TIME, view.created_at // _SECOND, now), (_LAST_SEEN, now // _SECOND, now)]
    return found


def container_series(
    view: ContainerView,
    details: Details,
    written: FsStats | None,
    disk: Disk,
    census: Census | None,
    now: int,
) -> list[Series]:
    """Return the series of a container that runs."""
    at = details.stats.timestamp
    found = _usage(details)
    found += [
        (key, amount, at)
        for key, amount in zip(_SPEC, _spec(view.resources or Resources()), strict=True)
        if amount is not None
    ]
    found += [
        (("container_fs_inodes_free", disk.device), disk.inodes_free, now),
        (("container_fs_inodes_total", disk.device), disk.inodes, now),
        (("container_fs_limit_bytes", disk.device), disk.size, now),
        (_START_TIME, view.started_at // _SECOND, now),
        (_LAST_SEEN, now // _SECOND, now),
    ]
    if written is not None:
        found.append((("container_fs_usage_bytes", disk.device), written.used_bytes, written.timestamp))
    if details.periods is not None and view.resources is not None and view.resources.cpu_quota > 0:
        throttling = (details.periods, details.throttled_periods or 0, (details.throttled_time or 0) // _SECOND)
        found += [(key, amount, at) for key, amount in zip(_THROTTLING, throttling, strict=True)]
    if census is not None:
        counts = census.processes, census.descriptors, census.sockets
        found += [(key, amount, now) for key, amount in zip(_CENSUS, counts, strict=True)]
        if census.open_files is not None and census.open_files >= 0:
            found.append((_OPEN_FILES, census.open_files, now))
    if details.stats.pids is not None:
        found += [(_THREADS, details.stats.pids, at), (_THREADS_MAX, details.pids_max or 0, at)]
    for pages in details.huge_pages:
        found.append((("container_hugetlb_usage_bytes", pages.size), pages.usage, at))
        if pages.peak is not None:
            found.append((("container_hugetlb_max_usage_bytes", pages.size), pages.peak, at))
    if details.disk_bytes or details.disk_operations:
        found += _disks(details, at)
    return found


def _usage(details: Details) -> list[Series]:
    """Return what groups of pods and containers have alike."""
    stats = details.stats
    at = stats.timestamp
    values = (
        _seconds(stats.cpu_usage),
        _seconds(details.cpu_user),
        _seconds(details.cpu_system),
        details.cache,
        details.limit_hits,
        details.own_page_faults,
        details.own_major_page_faults,
        stats.page_faults,
        stats.major_page_faults,
        details.kernel,
        details.mapped_file,
        details.peak,
        stats.rss,
        stats.swap_usage,
        stats.memory_usage,
        stats.working_set,
        details.oom_kills,
    )
    found = [(key, amount, at) for key, amount in zip(_USAGE, values, strict=True) if amount is not None]
    for keys, stalls in (
        (_CPU_PRESSURE, stats.cpu_pressure),
        (_IO_PRESSURE, stats.io_pressure),
        (_MEMORY_PRESSURE, stats.memory_pressure),
    ):
        if stalls is not None:
            found += [
                (keys[0], stalls.full.total // _MICROSECONDS, at),
                (keys[1], stalls.some.total // _MICROSECONDS, at),
            ]
    return found


def _spec(wanted: Resources) -> tuple[int | None, ...]:
    reserved = wanted.unified.get("memory.min", "")
    return (
        wanted.cpu_period or CPU_PERIOD,
        wanted.cpu_quota if wanted.cpu_quota > 0 else None,
        wanted.cpu_shares or CPU_SHARES,
        max(wanted.memory_limit_in_bytes, 0),
        int(reserved) if reserved.isdecimal() else 0,
        max(wanted.memory_swap_limit_in_bytes, 0),
    )


def _disks(details: Details, at: int) -> Iterator[Series]:
    for metrics, uses in ((_BYTES, details.disk_bytes), (_OPERATIONS, details.disk_operations)):
        for use in uses:
            device = device_name(use.major, use.minor)
            if use.operation in metrics:
                yield (metrics[use.operation], device), use.amount, at
            if metrics is _BYTES:
                yield _device_key(device, use), use.amount, at


def _device_key(device: str, use: DiskUse) -> Key:
    return "container_blkio_device_usage_total", device, str(use.major), str(use.minor), use.operation


def _seconds(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // _SECOND


_USAGE: tuple[Key, ...] = (
    ("container_cpu_usage_seconds_total", "total"),
    ("container_cpu_user_seconds_total",),
    ("container_cpu_system_seconds_total",),
    ("container_memory_cache",),
    ("container_memory_failcnt",),
    ("container_memory_failures_total", "pgfault", "container"),
    ("container_memory_failures_total", "pgmajfault", "container"),
    ("container_memory_failures_total", "pgfault", "hierarchy"),
    ("container_memory_failures_total", "pgmajfault", "hierarchy"),
    ("container_memory_kernel_usage",),
    ("container_memory_mapped_file",),
    ("container_memory_max_usage_bytes",),
    ("container_memory_rss",),
    ("container_memory_swap",),
    ("container_memory_usage_bytes",),
    ("container_memory_working_set_bytes",),
    ("container_oom_events_total",),
)
_CPU_PRESSURE, _IO_PRESSURE, _MEMORY_PRESSURE = (
    ((f"container_pressure_{what}_stalled_seconds_total",), (f"container_pressure_{what}_waiting_seconds_total",))
    for what in ("cpu", "io", "memory")
)
_SPEC: tuple[Key, ...] = (
    ("container_spec_cpu_period",),
    ("container_spec_cpu_quota",),
    ("container_spec_cpu_shares",),
    ("container_spec_memory_limit_bytes",),
    ("container_spec_memory_reservation_limit_bytes",),
    ("container_spec_memory_swap_limit_bytes",),
)
_THROTTLING: tuple[Key, ...] = (
    ("container_cpu_cfs_periods_total",),
    ("container_cpu_cfs_throttled_periods_total",),
    ("container_cpu_cfs_throttled_seconds_total",),
)
_CENSUS: tuple[Key, ...] = (("container_processes",), ("container_file_descriptors",), ("container_sockets",))
_NETWORK = tuple(
    f"container_network_{way}_{what}_total"
    for way in ("receive", "transmit")
    for what in ("bytes", "errors", "packets_dropped", "packets")
)
_BYTES = {"Read": "container_fs_reads_bytes_total", "Write": "container_fs_writes_bytes_total"}
_OPERATIONS = {"Read": "container_fs_reads_total", "Write": "container_fs_writes_total"}
_THREADS: Key = ("container_threads",)
_THREADS_MAX: Key = ("container_threads_max",)
_OPEN_FILES: Key = ("container_ulimits_soft", "max_open_files")
_START_TIME: Key = ("container_start_time_seconds",)
_LAST_SEEN: Key = ("container_last_seen",)
