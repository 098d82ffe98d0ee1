"""What cAdvisor tells of a group beyond a sample: throttling, kinds of memory and CPU time, hits, disks, huge pages.

`DetailReaders` reads a group's sample (`stats`) and the further files in one go; only who asks for metrics pays for
them. What a host's version of control groups does not have is None or missing, never 0.

Sources: cgroup-v1/{cpuacct,memory,hugetlb,blkio-controller}.rst, cgroup-v2.rst, scheduler/sched-bwc.rst.
"""

import os
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from crishim.linux.cgroups.layout import Layout
from crishim.linux.cgroups.stats import Files, GroupStats, Readers, number, value

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MICRO = 1000


class DiskUse(NamedTuple):
    """What a group did on one disk: `operation` is `Read`, `Write`… as cAdvisor names it."""

    major: int
    minor: int
    operation: str
    amount: int


class HugePages(NamedTuple):
    """Huge pages of one size (`2MB`), in bytes."""

    size: str
    usage: int
    peak: int | None


class Details(NamedTuple):
    """A sample with what cAdvisor tells besides; memory in bytes, times in ns, None is "not known on this host".

    The `own` page faults are those of the group without the groups below it, where the host tells them apart.
    """

    stats: GroupStats
    cpu_user: int | None
    cpu_system: int | None
    periods: int | None
    throttled_periods: int | None
    throttled_time: int | None
    cache: int | None
    mapped_file: int | None
    kernel: int | None
    peak: int | None
    limit_hits: int | None
    oom_kills: int | None
    own_page_faults: int | None
    own_major_page_faults: int | None
    pids_max: int | None
    disk_bytes: tuple[DiskUse, ...]
    disk_operations: tuple[DiskUse, ...]
    huge_pages: tuple[HugePages, ...]


_V1_FILES = (
    ("cpuacct", "cpuacct.stat"),
    ("cpu", "cpu.stat"),
    ("memory", "memory.kmem.usage_in_bytes"),
    ("memory", "memory.max_usage_in_bytes"),
    ("memory", "memory.failcnt"),
    ("memory", "memory.oom_control"),
    ("pids", "pids.max"),
    ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    ("blkio", "blkio.throttle.io_serviced_recursive"),
)
_V2_FILES = (
    ("memory", "memory.peak"),
    ("memory", "memory.events"),
    ("pids", "pids.max"),
    ("io", "io.stat"),
)
_V2_DISK = {"r": "Read", "w": "Write", "d": "Discard"}
_HUGE = re.compile(r"hugetlb\.([0-9]+[KMGT]B)\.(usage_in_bytes|current)")


def further_files(layout: Layout) -> int:
    """Return how many descriptors a group's details keep open beside those of its sample, without huge pages."""
    return len(_V2_FILES if layout.version == 2 else _V1_FILES)


class DetailReaders:
    """The further files of all groups, opened at the first read and kept until `forget`.

    Args:
        readers: of the samples; they close their own files.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._layout = readers.layout
        self._open: dict[str, tuple[Files, tuple[str, ...]]] = {}

    def read(self, group: str) -> Details | None:
        """Return the details of `group`, or None if it is gone."""
        texts = self._readers.texts(group)
        if texts is None:
            self.forget(group)
            return None
        entry = self._open.get(group)
        if entry is None:
            entry = self._open[group] = self._opened(group)
        files, sizes = entry
        make = _details_v2 if self._layout.version == 2 else _details_v1
        missing = [b""] * (further_files(self._layout) + 2 * len(sizes))
        return make(self._readers.sample(texts), texts, files.read() or missing, sizes)

    def forget(self, group: str) -> None:
        """Close the files of `group`; before it is removed, or after."""
        entry = self._open.pop(group, None)
        if entry is not None:
            entry[0].close()

    def close(self) -> None:
        """Close all files."""
        for group in list(self._open):
            self.forget(group)

    def _opened(self, group: str) -> tuple[Files, tuple[str, ...]]:
        layout = self._layout
        fixed = _V2_FILES if layout.version == 2 else _V1_FILES
        files = [(layout.directory(controller, group), name) for controller, name in fixed]
        place = layout.directory("hugetlb", group)
        sizes = _huge_sizes(place)
        pair = ("current", "") if layout.version == 2 else ("usage_in_bytes", "max_usage_in_bytes")
        files += [(place if name else None, f"hugetlb.{size}.{name}") for size in sizes for name in pair]
        return Files(files), sizes


def _details_v1(stats: GroupStats, sample: list[bytes], texts: list[bytes], sizes: tuple[str, ...]) -> Details:
    times, throttling, kernel, peak, hits, oom, pids, moved, operations, *huge = texts
    memory = sample[2]
    user, system = value(times, b"user "), value(times, b"system ")
    return Details(
        stats=stats,
        cpu_user=None if user is None else user * _TICK,
        cpu_system=None if system is None else system * _TICK,
        periods=value(throttling, b"nr_periods "),
        throttled_periods=value(throttling, b"nr_throttled "),
        throttled_time=value(throttling, b"throttled_time "),
        cache=value(memory, b"total_cache "),
        mapped_file=value(memory, b"total_mapped_file "),
        kernel=number(kernel),
        peak=number(peak),
        limit_hits=number(hits),
        oom_kills=value(oom, b"oom_kill "),
        own_page_faults=value(memory, b"pgfault "),
        own_major_page_faults=value(memory, b"pgmajfault "),
        pids_max=number(pids),
        disk_bytes=_disks_v1(moved),
        disk_operations=_disks_v1(operations),
        huge_pages=tuple(_huge_pages(sizes, huge)),
    )


def _details_v2(stats: GroupStats, sample: list[bytes], texts: list[bytes], sizes: tuple[str, ...]) -> Details:
    peak, events, pids, disks, *huge = texts
    cpu, memory = sample[0], sample[2]
    user, system, throttled = (value(cpu, key) for key in (b"user_usec ", b"system_usec ", b"throttled_usec "))
    return Details(
        stats=stats,
        cpu_user=None if user is None else user * _MICRO,
        cpu_system=None if system is None else system * _MICRO,
        periods=value(cpu, b"nr_periods "),
        throttled_periods=value(cpu, b"nr_throttled "),
        throttled_time=None if throttled is None else throttled * _MICRO,
        cache=value(memory, b"file "),
        mapped_file=value(memory, b"file_mapped "),
        kernel=value(memory, b"kernel "),
        peak=number(peak),
        limit_hits=value(events, b"max "),
        oom_kills=value(events, b"oom_kill "),
        own_page_faults=stats.page_faults,
        own_major_page_faults=stats.major_page_faults,
        pids_max=number(pids),
        disk_bytes=_disks_v2(disks, "bytes"),
        disk_operations=_disks_v2(disks, "ios"),
        huge_pages=tuple(_huge_pages(sizes, huge)),
    )


@lru_cache(maxsize=256)  # of hundreds of groups most do nothing between two scrapes
def _disks_v1(text: bytes) -> tuple[DiskUse, ...]:
    """Parse lines like `8:0 Read 4096`; the last, `Total 4096`, names no disk."""
    found = []
    for line in text.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdecimal():
            major, _, minor = words[0].partition(":")
            if major.isdecimal() and minor.isdecimal():
                found.append(DiskUse(int(major), int(minor), words[1], int(words[2])))
    return tuple(found)


@lru_cache(maxsize=256)
def _disks_v2(text: bytes, unit: str) -> tuple[DiskUse, ...]:
    """Parse lines like `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`."""
    found = []
    for line in text.decode("ascii", "replace").splitlines():
        device, *pairs = line.split() or [""]
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, amount = pair.partition("=")
            operation = _V2_DISK.get(key[:1])
            if key[1:] == unit and operation and amount.isdecimal() and major.isdecimal() and minor.isdecimal():
                found.append(DiskUse(int(major), int(minor), operation, int(amount)))
    return tuple(found)


def _huge_pages(sizes: tuple[str, ...], texts: list[bytes]) -> Iterator[HugePages]:
    for index, size in enumerate(sizes):
        usage = number(texts[2 * index])
        if usage is not None:
            yield HugePages(size, usage, number(texts[2 * index + 1]))


def _huge_sizes(directory: str | None) -> tuple[str, ...]:
    """Return the sizes of huge pages that a group counts."""
    try:
        names = [] if directory is None else os.listdir(directory)
    except OSError:
        return ()
    return tuple(sorted(match[1] for name in names if (match := _HUGE.fullmatch(name))))


@cache
def device_name(major: int, minor: int) -> str:
    """Return a disk's name, like `/dev/vda`, or its numbers where the kernel has no name for it (sysfs)."""
    try:
        with open(f"/sys/dev/block/{major}:{minor}/uevent", encoding="ascii", errors="replace") as file:
            for line in file:
                key, _, name = line.strip().partition("=")
                if key == "DEVNAME":
                    return f"/dev/{name}"
    except OSError:
        pass
    return f"{major}:{minor}"
