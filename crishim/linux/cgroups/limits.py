"""What a group is limited to, and which of that this host cannot hold. Pure.

A limit whose controller the host lacks is a problem, since it protects others; only swap and huge pages are left out
instead (see `settings`). The limits' form is the admission's to judge.

Sources: the CRI's `LinuxContainerResources`; scheduler/sched-bwc.rst, cpusets(7), cgroup-v2.rst for ranges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.linux.cgroups.devices import DeviceRule
from crishim.linux.cgroups.layout import Layout

MIN_SHARES, MAX_SHARES = 2, 262_144
MIN_MEMORY = 4 << 20
"""Bytes with which every start and exec works: measured at 0.1 MiB for a start that shares the keeper's memory, 0.9 for
one that is forked, 1.4 beside a tracer (cgroup v1); on v2 the fork's own page tables count too."""
MAX_QUOTA = (1 << 44) - 1  # kernel/sched/core.c, max_bw_runtime


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


def lacking(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    """Return (field, problem) for each limit, valid in form, whose controller the host lacks.

    Fields have the CRI's names (`memory_limit_in_bytes`).
    """
    wanted = (
        ("cpu", "cpu_quota", limits.cpu_quota > 0),
        ("cpuset", "cpuset_cpus", bool(limits.cpuset_cpus)),
        ("cpuset", "cpuset_mems", bool(limits.cpuset_mems)),
        ("memory", "memory_limit_in_bytes", limits.memory_limit > 0),
        ("pids", "pids_limit", limits.pids_limit > 0),
    )
    found = [
        (field, f"the host has no {controller} controller; enable it or leave the limit out")
        for controller, field, given in wanted
        if given and not layout.has(controller)
    ]
    for key in limits.unified:
        controller = key.partition(".")[0]
        if layout.version != 2:
            found.append((f"unified[{key!r}]", "needs cgroup v2; this host's controllers are on v1"))
        elif not layout.has(controller):
            found.append((f"unified[{key!r}]", f"the host has no {controller} controller"))
    return found
