"""Resource limits → the ordered writes that put them in force, for cgroup v1 and v2. Pure: reads nothing.

Out of scope: reading a group's present values (`update`), doing the writes (`apply`).

Invariants: applying the writes in order never passes through a state that the kernel refuses; what isolates or
protects is never left out silently: a limit whose controller the host lacks is a problem of `validate`, only swap
and huge page limits are dropped, and then named in `Settings.degraded`.

Sources: admin-guide/cgroup-v1/{memory,cpusets,devices,pids,hugetlb}.rst, admin-guide/cgroup-v2.rst,
scheduler/sched-bwc.rst; the CRI's `LinuxContainerResources` for units and for what 0 means.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from crishim.linux.cgroups.devices import DeviceRule, compile_rules
from crishim.linux.cgroups.layout import Layout

DEFAULT_PERIOD = 100_000
MIN_SHARES, MAX_SHARES = 2, 262_144
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_PAGE_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB)")
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


def merge(old: Limits, new: Limits) -> Limits:
    """Return `old` with what `new` gives: the limits after an update. Devices always stay those of `old`."""
    given = {
        name: getattr(new, name)
        for name in Limits.__dataclass_fields__
        if name not in {"devices", "unified", "hugepages"} and getattr(new, name)
    }
    pages = tuple(({**dict(old.hugepages), **dict(new.hugepages)}).items())
    return replace(old, **given, hugepages=pages, unified={**old.unified, **new.unified})


def validate(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    """Return all problems as (field, problem); fields have the CRI's names (`memory_limit_in_bytes`)."""
    return [*_cpu_problems(limits, layout), *_memory_problems(limits, layout), *_other_problems(limits, layout)]


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
    suffix = "max" if layout.hierarchy("hugetlb") is layout.unified else "limit_in_bytes"
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


def _cpu_problems(limits: Limits, layout: Layout) -> list[tuple[str, str]]:
    found = []
    if limits.cpu_period and not 1000 <= limits.cpu_period <= 1_000_000:
        found.append(("cpu_period", f"{limits.cpu_period} is not within 1000..1000000 µs"))
    if limits.cpu_quota != -1 and limits.cpu_quota and limits.cpu_quota < 1000:
        found.append(("cpu_quota", f"{limits.cpu_quota} is neither -1 (no limit) nor at least 1000 µs"))
    if limits.cpu_shares and not MIN_SHARES <= limits.cpu_shares <= MAX_SHARES:
        found.append(("cpu_shares", f"{limits.cpu_shares} is not within {MIN_SHARES}..{MAX_SHARES}"))
    if limits.cpu_quota > 0 and not layout.has("cpu"):
        found.append(("cpu_quota", "the host has no cpu controller; enable it or leave the limit out"))
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(limits, name)
        if not value:
            continue
        if not _CPU_LIST.fullmatch(value):
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
