"""What this host and the groups above leave to a group: the half of validation that only the kernel's files can give.

`limits.lacking` looks for controllers; here CPUs, memory nodes, bandwidth, page sizes and control files are compared
with what is there now, so that a value that the kernel would refuse later is refused while nothing has been written
yet. What cannot be read is not judged. Nothing is changed but by `refused_keys`, which asks the kernel with a group
made for that: what it takes of a unified map, no table here could say for each version.

Sources: cpusets(7); kernel/sched/core.c `tg_cfs_schedulable_down` (v1 alone refuses a quota above the parent's; v2
takes it, and the smaller of both holds); cgroup-v2.rst.
"""

import os

from crishim.linux.cgroups import apply
from crishim.linux.cgroups.layout import Layout
from crishim.linux.cgroups.limits import Limits, ranges

Problem = tuple[str, str]


def host_problems(limits: Limits, layout: Layout, parent: str, period: int) -> list[Problem]:
    """Return what `limits`, valid in form, ask for and the host has not, as (field, problem).

    Args:
        limits: of a group.
        layout: of the host.
        parent: the group above it, there or not yet.
        period: the µs of its bandwidth period where the limits give none.
    """
    return [
        *_set_problems("cpuset_cpus", limits.cpuset_cpus, layout, parent),
        *_set_problems("cpuset_mems", limits.cpuset_mems, layout, parent),
        *_bandwidth_problems(limits, layout, parent, period),
        *_file_problems(limits, layout, parent),
    ]


def refused_keys(limits: Limits, layout: Layout, group: str) -> list[Problem]:
    """Ask the kernel which of the unified map it refuses, by a group of this name that is gone again afterwards.

    Raises:
        OSError: the group could not be made or removed.
    """
    if layout.version != 2 or not limits.unified:
        return []
    directories = layout.directories(group)
    apply.make(directories)
    found = []
    try:
        for key, value in limits.unified.items():
            try:
                apply.write(directories[0], key, value)
            except OSError as error:
                found.append((f"unified[{key!r}]", f"the kernel refuses {value!r}: {os.strerror(error.errno or 0)}"))
    finally:
        apply.remove(directories)
    return found


def _set_problems(field: str, text: str, layout: Layout, parent: str) -> list[Problem]:
    if not text:
        return []
    name = field.removeprefix("cpuset_")
    file = f"cpuset.{name}.effective" if layout.version == 2 else f"cpuset.effective_{name}"
    found = _above(layout, "cpuset", parent, file)
    if not found:
        return []
    there = ranges(found)
    if all(any(low <= first and last <= high for low, high in there) for first, last in ranges(text)):
        return []
    what = "CPUs" if name == "cpus" else "memory nodes"
    return [(field, f"{text!r} is not within the {what} that the pod's group has now, {found}")]


def _bandwidth_problems(limits: Limits, layout: Layout, parent: str, period: int) -> list[Problem]:
    if limits.cpu_quota <= 0 or layout.version == 2:
        return []
    period = limits.cpu_period or period
    while True:
        above = _number(_read(layout.directory("cpu", parent), "cpu.cfs_quota_us"))
        if above > 0:
            break
        if parent in {"", "/"}:
            return []
        parent = os.path.dirname(parent)
    base = _number(_read(layout.directory("cpu", parent), "cpu.cfs_period_us")) or period
    if (limits.cpu_quota << 20) // period <= (above << 20) // base:
        return []
    text = f"{limits.cpu_quota} of {period} µs is more than the group above has, {above} of {base} ({parent})"
    return [("cpu_quota", text)]


def _file_problems(limits: Limits, layout: Layout, parent: str) -> list[Problem]:
    found = []
    suffix = "max" if layout.version == 2 else "limit_in_bytes"
    pages = layout.directory("hugetlb", parent)
    for index, (size, _limit) in enumerate(limits.hugepages):
        if _lacks(pages, f"hugetlb.{size}.{suffix}"):
            found.append((f"hugepage_limits[{index}].page_size", f"this host has no huge pages of {size}"))
    found += [
        (f"unified[{key!r}]", "this kernel has no such control file")
        for key in limits.unified
        if _lacks(layout.directory(key.partition(".")[0], parent), key)
    ]
    return found


def _lacks(directory: str | None, file: str) -> bool:
    return directory is not None and os.path.isdir(directory) and not os.path.exists(f"{directory}/{file}")


def _above(layout: Layout, controller: str, group: str, file: str) -> str:
    """Return a file's content in the nearest group, from this one upwards, that has any; "" for none."""
    while True:
        text = _read(layout.directory(controller, group), file)
        if text or group in {"", "/"}:
            return text
        group = os.path.dirname(group)


def _read(directory: str | None, file: str) -> str:
    if directory is None:
        return ""
    try:
        return apply.read(directory, file).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
