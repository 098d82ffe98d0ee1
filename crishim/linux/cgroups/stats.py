"""What a group uses: CPU time, memory, swap, processes, pressure; for lists over hundreds of groups.

`Files` keeps files of one group open and reads each with one pread; `Readers` keeps those of all groups. Numbers only:
rates are made by who keeps earlier samples. Out of scope: names, pods, CRI messages.

Invariant: a group that is gone, or has an odd file, gives None (as a whole, or for that value), never an exception.

Sources: cgroup-v1/{cpuacct,memory,pids}.rst, cgroup-v2.rst, accounting/psi.rst. On v1 limits and swap come from
memory.stat's `hierarchical_*` and `total_*` lines, which saves two reads a group.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from crishim.clock import now
from crishim.linux.cgroups.layout import Layout

_UNLIMITED = 1 << 62  # v1 shows "no limit" as the largest multiple of a page below 2^63


class Stall(NamedTuple):
    """One line of a pressure file: total in µs, averages in percent."""

    total: int
    avg10: float
    avg60: float
    avg300: float


class Stalls(NamedTuple):
    """Some or all tasks waiting for one resource."""

    some: Stall
    full: Stall


class GroupStats(NamedTuple):
    """One sample; None is "not known on this host". Memory in bytes, CPU in ns.

    `working_set` is usage without inactive file cache, at least 0; `memory_limit` and `swap_limit` are None without
    a limit; `swap_limit` is the room for swap alone.
    """

    timestamp: int
    cpu_usage: int | None = None
    memory_usage: int | None = None
    working_set: int | None = None
    rss: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    memory_limit: int | None = None
    swap_usage: int | None = None
    swap_limit: int | None = None
    pids: int | None = None
    cpu_pressure: Stalls | None = None
    memory_pressure: Stalls | None = None
    io_pressure: Stalls | None = None


_V1_FILES = (
    ("cpuacct", "cpuacct.usage"),
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.stat"),
    ("pids", "pids.current"),
)
_V2_FILES = (
    ("cpuacct", "cpu.stat"),
    ("memory", "memory.current"),
    ("memory", "memory.stat"),
    ("pids", "pids.current"),
    ("memory", "memory.max"),
    ("memory", "memory.swap.current"),
    ("memory", "memory.swap.max"),
)
_PRESSURE_FILES = ("cpu.pressure", "memory.pressure", "io.pressure")


def files_per_group(layout: Layout) -> int:
    """Return how many descriptors `Readers` keeps open for a group."""
    return (len(_V2_FILES) if layout.version == 2 else len(_V1_FILES)) + (len(_PRESSURE_FILES) if layout.unified else 0)


class Files:
    """Open files of one group: (directory, or None where the host has none; name) each."""

    def __init__(self, files: Sequence[tuple[str | None, str]]) -> None:
        self._fds = [_open(directory, name) for directory, name in files]
        self._gone = all(fd < 0 for fd in self._fds)

    def read(self) -> list[bytes] | None:
        """Return what the files hold, "" for one that cannot be read; None if the group is gone."""
        if self._gone:
            return None
        try:
            return [os.pread(fd, 4096, 0) if fd >= 0 else b"" for fd in self._fds]
        except OSError:
            texts = self._read_what_can_be()
            if any(texts):
                return texts
        self.close()
        return None

    def _read_what_can_be(self) -> list[bytes]:
        """Read each file by itself: pressure may be switched off (EOPNOTSUPP), a group gone (ENODEV)."""
        texts = []
        for index, fd in enumerate(self._fds):
            text = b""
            if fd >= 0:
                try:
                    text = os.pread(fd, 4096, 0)
                except OSError:
                    os.close(fd)
                    self._fds[index] = -1
            texts.append(text)
        return texts

    def close(self) -> None:
        """Close the files; later reads give None."""
        self._gone = True
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = []


class Readers:
    """The files of all groups, opened at the first read and kept until `forget`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sample = _sample_v2 if layout.version == 2 else _sample_v1
        self._open: dict[str, Files] = {}

    def read(self, group: str) -> GroupStats | None:
        """Return a sample of `group`, or None if it is gone."""
        texts = self.texts(group)
        return None if texts is None else self._sample(texts)

    def texts(self, group: str) -> list[bytes] | None:
        """Return what `sample` makes a sample of, or None if the group is gone."""
        files = self._open.get(group)
        if files is None:
            files = self._open[group] = Files(_files(self.layout, group))
        texts = files.read()
        if texts is None:
            del self._open[group]
        return texts

    def sample(self, texts: list[bytes]) -> GroupStats:
        """Return what the texts of a group say."""
        return self._sample(texts)

    def forget(self, group: str) -> None:
        """Close the files of `group`; before it is removed, or after."""
        files = self._open.pop(group, None)
        if files is not None:
            files.close()

    def close(self) -> None:
        """Close all files."""
        for group in list(self._open):
            self.forget(group)


def _files(layout: Layout, group: str) -> list[tuple[str | None, str]]:
    """Return the files of a sample; pressure is found where there is a v2 hierarchy."""
    files = [(layout.directory(c, group), f) for c, f in (_V2_FILES if layout.version == 2 else _V1_FILES)]
    return files + [(layout.unified_directory(group), name) for name in _PRESSURE_FILES]


def _open(directory: str | None, name: str) -> int:
    if directory is None:
        return -1
    try:
        return os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _sample_v1(texts: list[bytes]) -> GroupStats:
    cpu, usage, stat, pids, *pressure = texts
    memory = number(usage)
    limit = value(stat, b"hierarchical_memory_limit ")
    both = value(stat, b"hierarchical_memsw_limit ")
    limit = limit if limit is not None and limit < _UNLIMITED else None
    return _build(
        cpu_usage=number(cpu),
        memory=memory,
        inactive=value(stat, b"total_inactive_file "),
        rss=value(stat, b"total_rss "),
        faults=(value(stat, b"total_pgfault "), value(stat, b"total_pgmajfault ")),
        limits=(limit, max(both - limit, 0) if limit is not None and both is not None and both < _UNLIMITED else None),
        swap=value(stat, b"total_swap ") if both is not None else None,
        pids=number(pids),
        pressure=pressure,
    )


def _sample_v2(texts: list[bytes]) -> GroupStats:
    cpu, usage, stat, pids, limit, swap, swap_limit, *pressure = texts
    microseconds = value(cpu, b"usage_usec ")
    return _build(
        cpu_usage=None if microseconds is None else microseconds * 1000,
        memory=number(usage),
        inactive=value(stat, b"inactive_file "),
        rss=value(stat, b"anon "),
        faults=(value(stat, b"pgfault "), value(stat, b"pgmajfault ")),
        limits=(number(limit), number(swap_limit)),
        swap=number(swap),
        pids=number(pids),
        pressure=pressure,
    )


def _build(
    *,
    cpu_usage: int | None,
    memory: int | None,
    inactive: int | None,
    rss: int | None,
    faults: tuple[int | None, int | None],
    limits: tuple[int | None, int | None],
    swap: int | None,
    pids: int | None,
    pressure: list[bytes],
) -> GroupStats:
    stalls = [_stalls(text) for text in pressure] or [None, None, None]
    return GroupStats(
        timestamp=now(),
        cpu_usage=cpu_usage,
        memory_usage=memory,
        # A child group that moved out may leave more inactive cache than usage: floor 0.
        working_set=None if memory is None else max(memory - (inactive or 0), 0),
        rss=rss,
        page_faults=faults[0] or 0,
        major_page_faults=faults[1] or 0,
        memory_limit=limits[0],
        swap_usage=swap,
        swap_limit=limits[1],
        pids=pids,
        cpu_pressure=stalls[0],
        memory_pressure=stalls[1],
        io_pressure=stalls[2],
    )


def number(text: bytes) -> int | None:
    """Return a file's only number; None for `max`, for an empty text and for what is no number."""
    try:
        return int(text)
    except ValueError:
        return None


def value(text: bytes, key: bytes) -> int | None:
    """Return the number after `key` at the start of a line."""
    if text.startswith(key):
        start = len(key)
    else:
        start = text.find(b"\n" + key)
        if start < 0:
            return None
        start += 1 + len(key)
    end = text.find(b"\n", start)
    return number(text[start : end if end >= 0 else len(text)])


@lru_cache(maxsize=1024)  # of hundreds of groups most are idle and show the same text
def _stalls(text: bytes) -> Stalls | None:
    """Parse `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same with `full`."""
    words = text.split()
    if len(words) != 10:
        return None
    try:
        return Stalls(_stall(words[1:5]), _stall(words[6:10]))
    except ValueError:
        return None


def _stall(words: list[bytes]) -> Stall:
    ten, sixty, three, total = words
    return Stall(int(total[6:]), float(ten[6:]), float(sixty[6:]), float(three[7:]))
