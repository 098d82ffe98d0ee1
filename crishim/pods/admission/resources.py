"""Limits of a container or a pod: their form. Which of them this host can hold is `linux.cgroups.limits` to know.

Memory in bytes, times in microseconds; 0 and "" mean not given, -1 no limit.
Sources: the CRI's `LinuxContainerResources`; scheduler/sched-bwc.rst, cpusets(7), hugetlbpage.rst, cgroup-v2.rst.
"""

import re

from crishim.linux.cgroups.limits import MAX_SHARES, MIN_MEMORY, MIN_SHARES, ranges
from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import Resources
from crishim.words import number

PERIOD = (1_000, 1_000_000)
"""Shortest and longest CFS period in µs (sched-bwc.rst)."""
QUOTA = (1_000, (1 << 44) - 1)
"""Shortest and longest CFS quota in µs (sched-bwc.rst; kernel/sched/core.c, max_bw_runtime)."""
MAX_SCORE = 1_000
"""Bound of oom_score_adj (proc(5))."""
_CPU_LIST = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")
_PAGE_SIZE = re.compile(r"[1-9][0-9]*(KB|MB|GB)")
_UNIFIED_KEY = re.compile(r"(?!cgroup\.)[a-z]+(\.[A-Za-z0-9_]+)+")


def judge(problems: Problems, wanted: Resources | None, field: str, *, container: bool = False) -> None:
    """Judge limits, whose field in the request is `field`; None asks for none. A `container` starts within them."""
    if wanted is None:
        return
    if container:
        _least_memory(problems, wanted, field)
    _cpu(problems, wanted, field)
    _memory(problems, wanted, field)
    checks.number(problems, f"{field}.oom_score_adj", wanted.oom_score_adj, -MAX_SCORE, MAX_SCORE)
    for n, limit in enumerate(wanted.hugepage_limits):
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            problems.add(f"{field}.hugepage_limits[{n}].page_size", f"must be like 2MB or 1GB, is {limit.page_size!r}")
    for key, value in wanted.unified.items():
        if not _UNIFIED_KEY.fullmatch(key):
            problems.add(f"{field}.unified[{key!r}]", "is no file name of a controller, like memory.high")
        checks.c_string(problems, f"{field}.unified[{key!r}]", value)


def _cpu(problems: Problems, wanted: Resources, field: str) -> None:
    if wanted.cpu_period:
        checks.number(problems, f"{field}.cpu_period", wanted.cpu_period, *PERIOD)
    if wanted.cpu_quota not in {0, -1} and not QUOTA[0] <= wanted.cpu_quota <= QUOTA[1]:
        problems.add(
            f"{field}.cpu_quota",
            f"must be -1 (no limit), 0 (not given) or {QUOTA[0]} to {QUOTA[1]} µs, is {wanted.cpu_quota}",
        )
    if wanted.cpu_shares:
        checks.number(problems, f"{field}.cpu_shares", wanted.cpu_shares, MIN_SHARES, MAX_SHARES)
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(wanted, name)
        if value and not (_CPU_LIST.fullmatch(value) and all(first <= last for first, last in ranges(value))):
            problems.add(f"{field}.{name}", f"must be a list of numbers and ranges like 0-2,7, is {value!r}")


def _least_memory(problems: Problems, wanted: Resources, field: str) -> None:
    """Refuse what the kernel would kill every start for: better said now than by a container that does not run."""
    limits = {"memory_limit_in_bytes": wanted.memory_limit_in_bytes}
    for key in ("memory.max", "memory.high"):
        value = wanted.unified.get(key, "").strip()
        limits[f"unified[{key!r}]"] = number(value) or 0
    for name, limit in limits.items():
        if 0 < limit < MIN_MEMORY:
            problems.add(f"{field}.{name}", f"must be at least {MIN_MEMORY}, which a start needs, is {limit}")


def _memory(problems: Problems, wanted: Resources, field: str) -> None:
    memory, swap = wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes
    if memory < -1:
        problems.add(f"{field}.memory_limit_in_bytes", f"must be -1 (no limit) or from 0 on, is {memory}")
    if swap < -1:
        problems.add(f"{field}.memory_swap_limit_in_bytes", f"must be -1 (no limit) or from 0 on, is {swap}")
    elif swap > 0 and memory <= 0:
        problems.add(
            f"{field}.memory_swap_limit_in_bytes", "is memory and swap together: give memory_limit_in_bytes too"
        )
    elif 0 < swap < memory:
        problems.add(
            f"{field}.memory_swap_limit_in_bytes",
            f"is memory and swap together, so it must be at least memory_limit_in_bytes ({memory}), is {swap}",
        )
