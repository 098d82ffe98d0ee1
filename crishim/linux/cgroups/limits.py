"""What a group is limited to, and what is wrong about it. Pure.

Invariant: `validate` reports every problem at once, under the CRI's names of the fields. A limit whose controller the
host lacks is a problem, since it protects others; only swap and huge pages are left out instead (see `settings`).

Sources: the CRI's `LinuxContainerResources`; scheduler/sched-bwc.rst, cpusets(7), cgroup-v2.rst for ranges.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.linux.cgroups.devices import DeviceRule
from crishim.linux.cgroups.layout import Layout

MIN_SHARES, MAX_SHARES = 2, 262_144
MAX_QUOTA = (1 << 44) - 1  # kernel/sched/core.c, max_bw_runtime
_CPU_LIST = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")
_PAGE_SIZE = re.compile(r"[1-9][0-9]*(KB|MB|GB)")
_UNIFIED_KEY = re.compile(r"(?!cgroup\.)[a-z]+(\.[A-Za-z0-9_]+)+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group is limited to.

    0, "" and empty mean "not given"; -1 means "no limit" for quota, memory, swap and pids. Times are µs, sizes bytes.
    `memory_swap_limit` is memory and swap together, as in the CRI; not given beside a memory limit it equals it, so
    that a container does not swap by default. `devices` None leaves the group's device access as it is; an empty
    tuple allows none.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit: int = 0
    memory_swap_limit: int = 0
    pids_limit: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepages: tuple[tuple[str, int], ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceRule, ...] | None = None


def ranges(text: str) -> list[tuple[int, int]]:
    """Return the ranges of a list like `0-3,7`, each with its first and last number."""
    parts = [part.partition("-") for part in text.split(",")]
    return [(int(first), int(last or first)) for first, _, last in parts]


def validate(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    """Return all problems as (field, problem); fields have the CRI's names (`memory_limit_in_bytes`)."""
    return [*_cpu_problems(limits, layout), *_memory_problems(limits, layout), *_other_problems(limits, layout)]


def _cpu_problems(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    found = []
    if limits.cpu_period and not 1000 <= limits.cpu_period <= 1_000_000:
        found.append(("cpu_period", f"{limits.cpu_period} is not within 1000..1000000 µs"))
    if limits.cpu_quota not in {0, -1} and not 1000 <= limits.cpu_quota <= MAX_QUOTA:
        found.append(("cpu_quota", f"{limits.cpu_quota} is neither -1 (no limit) nor within 1000..{MAX_QUOTA} µs"))
    if limits.cpu_shares and not MIN_SHARES <= limits.cpu_shares <= MAX_SHARES:
        found.append(("cpu_shares", f"{limits.cpu_shares} is not within {MIN_SHARES}..{MAX_SHARES}"))
    if limits.cpu_quota > 0 and not layout.has("cpu"):
        found.append(("cpu_quota", "the host has no cpu controller; enable it or leave the limit out"))
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(limits, name)
        if not value:
            continue
        if not _CPU_LIST.fullmatch(value) or any(first > last for first, last in ranges(value)):
            found.append((name, f"{value!r} is no list like 0-3,7"))
        elif not layout.has("cpuset"):
            found.append((name, "the host has no cpuset controller; enable it or leave the list out"))
    return found


def _memory_problems(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    found = []
    limit, total = limits.memory_limit, limits.memory_swap_limit
    name, swap_name = "memory_limit_in_bytes", "memory_swap_limit_in_bytes"
    if limit < -1:
        found.append((name, f"{limit} is neither -1 (no limit) nor a size"))
    elif limit > 0 and not layout.has("memory"):
        found.append((name, "the host has no memory controller; enable it or leave the limit out"))
    if total < -1:
        found.append((swap_name, f"{total} is neither -1 (no limit) nor a size"))
    elif total > 0 and limit <= 0:
        found.append((swap_name, "needs memory_limit_in_bytes beside it; it is memory and swap together"))
    elif 0 < total < limit:
        found.append((swap_name, f"{total} is below memory_limit_in_bytes ({limit}); it is memory and swap together"))
    return found


def _other_problems(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    found = []
    if limits.pids_limit < -1:
        found.append(("pids_limit", f"{limits.pids_limit} is neither -1 (no limit) nor a count"))
    elif limits.pids_limit > 0 and not layout.has("pids"):
        found.append(("pids_limit", "the host has no pids controller; enable it or leave the limit out"))
    for index, (size, limit) in enumerate(limits.hugepages):
        if not _PAGE_SIZE.fullmatch(size):
            found.append((f"hugepage_limits[{index}].page_size", f"{size!r} is no size like 2MB or 1GB"))
        if limit < 0:
            found.append((f"hugepage_limits[{index}].limit", f"{limit} is negative"))
    for key, value in limits.unified.items():
        place = f"unified[{key!r}]"
        if layout.version != 2:
            found.append((place, "needs cgroup v2; this host's controllers are on v1"))
        elif not _UNIFIED_KEY.fullmatch(key):
            found.append((place, "is no file name of a controller, like memory.high"))
        elif not layout.has(key.partition(".")[0]):
            found.append((place, f"the host has no {key.partition('.')[0]} controller"))
        if "\0" in value:
            found.append((place, "the value holds a zero byte"))
    return found
