"""Changing a running group's limits: what is in force now, what must be refused, and the writes in the right order.

The writes themselves are `settings.plan_settings` with the `Current` read here. Devices are never touched by an
update, so no device is refused for a moment.

Invariants: a memory limit that the group's unreclaimable use exceeds is refused before anything is written: on v2 the
kernel would take the write and kill the container (cgroup-v2.rst, memory.max). All writes of `change`
are in force, or the values from before it.
"""

import os
from collections.abc import Iterable, Sequence

from crishim.errors import FailedPreconditionError
from crishim.linux.cgroups import apply
from crishim.linux.cgroups.layout import Layout
from crishim.linux.cgroups.settings import DEFAULT_PERIOD, Current, Limits, Settings, Write, plan_settings

_UNLIMITED = 1 << 62
_FIELDS = {
    "cpu.cfs_period_us": "cpu_period",
    "cpu.cfs_quota_us": "cpu_quota",
    "cpu.max": "cpu_quota",
    "cpu.shares": "cpu_shares",
    "cpu.weight": "cpu_shares",
    "cpuset.cpus": "cpuset_cpus",
    "cpuset.mems": "cpuset_mems",
    "memory.limit_in_bytes": "memory_limit_in_bytes",
    "memory.max": "memory_limit_in_bytes",
    "memory.memsw.limit_in_bytes": "memory_swap_limit_in_bytes",
    "memory.swap.max": "memory_swap_limit_in_bytes",
}


class RefusedError(Exception):
    """The kernel refused a write; those before it were taken back.

    Args:
        write: the refused one.
        number: errno.
        stuck: writes that could not be taken back; their new values are in force.
    """

    def __init__(self, write: Write, number: int, stuck: Sequence[Write]) -> None:
        super().__init__(f"write {write.file}={write.value}: {os.strerror(number)}")
        self.write = write
        self.errno = number
        self.stuck = stuck


def change(writes: Iterable[Write]) -> list[Write]:
    """Do the writes in their order; return what takes them back (`take_back`).

    Raises:
        RefusedError: one was refused; the values from before are in force again.
    """
    old: list[Write] = []
    for write in writes:
        before = [Write(write.directory, write.file, line) for line in _lines(write)]
        try:
            apply.write(write.directory, write.file, write.value)
        except OSError as error:
            raise RefusedError(write, error.errno or 0, take_back(old)) from None
        old[:0] = before
    return old


def take_back(old: Iterable[Write]) -> list[Write]:
    """Write the values from before a change; return those that the kernel does not take."""
    stuck = []
    for write in old:
        try:
            apply.write(write.directory, write.file, write.value)
        except OSError:
            stuck.append(write)
    return stuck


def field_of(write: Write, limits: Limits) -> str:
    """Return the CRI's name of the field that a write comes from."""
    if limits.unified.get(write.file) == write.value:
        return f"unified[{write.file!r}]"
    return _FIELDS.get(write.file, "hugepage_limits" if write.file.startswith("hugetlb.") else write.file)


def _lines(write: Write) -> list[str]:
    """Return a control file's content as it is written: line by line, since each line of a keyed file is a value.

    An empty cpuset is written as an empty line; a file that is gone or cannot be read has nothing to take back.
    """
    try:
        text = apply.read(write.directory, write.file).decode("ascii", "replace")
    except OSError:
        return []
    return [line or "\n" for line in text.splitlines()] or ["\n"]


def read_current(layout: Layout, group: str) -> Current:
    """Return the values of `group` that decide about the order of writes; -1 for no limit."""
    memory, cpu = layout.directory("memory", group), layout.directory("cpu", group)
    if layout.version == 2:
        parts = _read(cpu, "cpu.max").split()
        return Current(_limit(_read(memory, "memory.max")), -1, int(parts[1]) if len(parts) == 2 else DEFAULT_PERIOD)
    return Current(
        _limit(_read(memory, "memory.limit_in_bytes")),
        _limit(_read(memory, "memory.memsw.limit_in_bytes")),
        int(_read(cpu, "cpu.cfs_period_us") or DEFAULT_PERIOD),
    )


def unreclaimable(layout: Layout, group: str) -> int:
    """Return how many bytes of the group's memory the kernel could not give up without swap or a kill."""
    directory = layout.directory("memory", group)
    unified = layout.version == 2
    usage = int(_read(directory, "memory.current" if unified else "memory.usage_in_bytes") or 0)
    stat = dict(line.split(b" ", 1) for line in _read(directory, "memory.stat").split(b"\n") if b" " in line)
    prefix = b"" if unified else b"total_"
    # slab_reclaimable is v2's alone: v1 counts kernel memory in usage without saying which part is which.
    caches = (prefix + b"inactive_file", prefix + b"active_file", b"slab_reclaimable")
    return max(usage - sum(int(stat.get(key, b"0")) for key in caches), 0)


def plan_update(limits: Limits, layout: Layout, group: str, *, swap: bool = True) -> Settings:
    """Return the writes that put `limits` (valid, merged with those in force) in force in a running group.

    Raises:
        FailedPreconditionError: the memory limit is below what the group cannot give up; nothing was written.
    """
    current = read_current(layout, group)
    lowered = limits.memory_limit > 0 and (current.memory_limit == -1 or limits.memory_limit < current.memory_limit)
    if lowered and (used := unreclaimable(layout, group)) > limits.memory_limit:
        raise FailedPreconditionError(
            f"memory_limit_in_bytes: {limits.memory_limit} is below the {used} bytes in use that cannot be reclaimed; "
            "the old limit stays; free memory first or choose a higher limit"
        )
    return plan_settings(_without_devices(limits), layout, group, current=current, swap=swap)


def _without_devices(limits: Limits) -> Limits:
    kept = {name: getattr(limits, name) for name in Limits.__dataclass_fields__ if name != "devices"}
    return Limits(**kept)


def _read(directory: str | None, file: str) -> bytes:
    if directory is None:
        return b""
    try:
        return apply.read(directory, file).strip()
    except OSError:
        return b""


def _limit(text: bytes) -> int:
    if not text or text == b"max":
        return -1
    value = int(text)
    return value if value < _UNLIMITED else -1
