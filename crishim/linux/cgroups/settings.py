"""Resource limits → the ordered writes that put them in force, for cgroup v1 and v2. Pure: reads nothing.

Out of scope: which limits are right (`limits`), reading a group's present values (`update`), doing the writes
(`apply`).

Invariants: applying the writes in order never passes through a state that the kernel refuses; what isolates or
protects is never left out silently: a limit whose controller the host lacks is a problem (`limits.lacking`), only swap
and huge page limits are dropped, and then named in `Settings.degraded`.

Sources: admin-guide/cgroup-v1/{memory,cpusets,devices,pids,hugetlb}.rst, admin-guide/cgroup-v2.rst,
scheduler/sched-bwc.rst; the CRI's `LinuxContainerResources` for units and for what 0 means.
"""

import math
from dataclasses import dataclass

from crishim.linux.cgroups.devices import compile_rules
from crishim.linux.cgroups.layout import Layout
from crishim.linux.cgroups.limits import MAX_SHARES, MIN_SHARES, Limits

__all__ = ["Current", "Limits", "Settings", "Write", "plan_settings", "shares_to_weight"]

DEFAULT_PERIOD = 100_000


@dataclass(frozen=True, slots=True)
class Current:
    """A group's values in force, as `update.read_current` finds them; the defaults are a fresh group's. -1: none."""

    memory_limit: int = -1
    memory_swap_limit: int = -1
    cpu_period: int = DEFAULT_PERIOD


@dataclass(frozen=True, slots=True)
class Write:
    """One write of `value` to `directory`/`file`."""

    directory: str
    file: str
    value: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What puts limits in force.

    Args:
        writes: in the order to do them.
        device_program: BPF instructions to attach to the v2 directory; empty on v1 and where devices stay as is.
        degraded: what was asked for and left out because the host lacks it: `swap`, `hugepages`.
    """

    writes: tuple[Write, ...] = ()
    device_program: bytes = b""
    degraded: tuple[str, ...] = ()


def shares_to_weight(shares: int) -> int:
    """Return the cpu.weight for v1 cpu shares; 0 for 0 (not given).

    The mapping is the one that the runtimes agreed on in 2025 (runc #4896): 1024 shares become the default weight
    of 100, so that containers stand beside the host's services as they did on v1.
    """
    if shares <= 0:
        return 0
    if shares <= MIN_SHARES:
        return 1
    if shares >= MAX_SHARES:
        return 10_000
    log = math.log2(shares)
    exponent = (log * log + 125 * log) / 612 - 7 / 34
    # The tiny subtraction keeps an exact power (1024 → 100) from being rounded up by float noise.
    return math.ceil(10**exponent - 1e-9)


def plan_settings(
    limits: Limits, layout: Layout, group: str, *, current: Current | None = None, swap: bool = True
) -> Settings:
    """Return what puts `limits` in force in `group`.

    Args:
        limits: validated limits.
        layout: of the host.
        group: the group's name.
        current: the values in force, for an update; None for a fresh group.
        swap: the host accounts swap (`memory.swap.max` or `memory.memsw.*` exist).
    """
    now = current or Current()
    writes: list[Write] = []

    def add(controller: str, file: str, value: str) -> None:
        directory = layout.directory(controller, group)
        if directory is not None:
            writes.append(Write(directory, file, value))

    degraded = []
    plan = _plan_v2 if layout.version == 2 else _plan_v1
    triples = plan(limits, now, swap=swap) + _hugepages(limits, layout)
    if layout.version == 2:
        # The unified map comes last: it is the most explicit, and overrides what was derived from other fields.
        triples += [(key.partition(".")[0], key, value) for key, value in limits.unified.items()]
    for controller, file, value in triples:
        add(controller, file, value)
    if limits.memory_swap_limit > limits.memory_limit > 0 and not swap:
        degraded.append("swap")
    if limits.hugepages and not layout.has("hugetlb"):
        degraded.append("hugepages")
    program = b""
    if limits.devices is not None and layout.version == 2:
        program = compile_rules(limits.devices)
    return Settings(tuple(writes), program, tuple(degraded))


_Triple = tuple[str, str, str]


def _plan_v1(limits: Limits, now: Current, *, swap: bool) -> list[_Triple]:
    out: list[_Triple] = []
    if limits.devices is not None:
        out.append(("devices", "devices.deny", "a"))
        out += [("devices", "devices.allow", rule.text()) for rule in limits.devices]
    out += _cpuset(limits)
    if limits.cpu_shares:
        out.append(("cpu", "cpu.shares", str(limits.cpu_shares)))
    period = ("cpu", "cpu.cfs_period_us", str(limits.cpu_period))
    quota = ("cpu", "cpu.cfs_quota_us", str(limits.cpu_quota))
    bandwidth = [t for t in (period, quota) if t[2] != "0"]
    if limits.cpu_period and limits.cpu_period < now.cpu_period:
        # A shorter period under the old quota might exceed what the group above has (EINVAL): quota first.
        bandwidth.reverse()
    out += bandwidth
    out += _memory_v1(limits, now, swap=swap)
    if limits.pids_limit:
        out.append(("pids", "pids.max", _max(limits.pids_limit)))
    return out


def _memory_v1(limits: Limits, now: Current, *, swap: bool) -> list[_Triple]:
    """The kernel wants memory ≤ memory+swap at every moment, so the one that makes room goes first."""
    if not limits.memory_limit:
        return []
    limit = ("memory", "memory.limit_in_bytes", str(limits.memory_limit))
    if not swap:
        return [limit]
    total = _swap_total(limits)
    both = [limit, ("memory", "memory.memsw.limit_in_bytes", str(total))]
    if now.memory_swap_limit != -1 and (total == -1 or total >= now.memory_swap_limit):
        both.reverse()
    return both


def _plan_v2(limits: Limits, now: Current, *, swap: bool) -> list[_Triple]:
    out = _cpuset(limits)
    if limits.cpu_shares:
        out.append(("cpu", "cpu.weight", str(shares_to_weight(limits.cpu_shares))))
    if limits.cpu_quota or limits.cpu_period:
        quota = f"{_max(limits.cpu_quota)} " if limits.cpu_quota else "max "
        out.append(("cpu", "cpu.max", f"{quota}{limits.cpu_period or now.cpu_period}"))
    if limits.memory_limit:
        if swap:
            total = _swap_total(limits)
            extra = -1 if total == -1 else total - limits.memory_limit
            out.append(("memory", "memory.swap.max", _max(extra)))
        out.append(("memory", "memory.max", _max(limits.memory_limit)))
    if limits.pids_limit:
        out.append(("pids", "pids.max", _max(limits.pids_limit)))
    return out


def _hugepages(limits: Limits, layout: Layout) -> list[_Triple]:
    """Limit what is used and what is reserved, so that a program learns it from mmap, not by SIGBUS (hugetlb.rst)."""
    suffix = "max" if layout.version == 2 else "limit_in_bytes"
    return [
        ("hugetlb", f"hugetlb.{size}.{part}{suffix}", str(limit))
        for size, limit in limits.hugepages
        for part in ("", "rsvd.")
    ]


def _cpuset(limits: Limits) -> list[_Triple]:
    pairs = (("cpuset.cpus", limits.cpuset_cpus), ("cpuset.mems", limits.cpuset_mems))
    return [("cpuset", file, value) for file, value in pairs if value]


def _swap_total(limits: Limits) -> int:
    """Memory and swap together; with a limit below memory's (after an update of memory alone) memory's."""
    if limits.memory_limit == -1 or limits.memory_swap_limit == -1:
        return -1
    return max(limits.memory_swap_limit, limits.memory_limit)


def _max(value: int) -> str:
    return "max" if value < 0 else str(value)
