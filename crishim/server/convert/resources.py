"""cgroup settings, both ways. Memory in bytes, times in microseconds; 0 and "" mean not given."""

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import HugepageLimit, Resources
from crishim.errors import InvalidArgumentError
from crishim.server.convert.fields import Problems

PERIOD = (1_000, 1_000_000)
"""Shortest and longest CFS period in µs (Documentation/scheduler/sched-bwc.rst)."""
MIN_QUOTA = 1_000
"""Shortest CFS quota in µs; same source."""
MAX_SCORE = 1_000
"""Bound of oom_score_adj (proc(5))."""
_SET = frozenset("0123456789,-")


def from_message(problems: Problems, message: pb.LinuxContainerResources, path: str) -> Resources:
    """Return the settings; problems are noted by field."""
    _check_cpu(problems, message, path)
    _check_memory(problems, message, path)
    problems.number(f"{path}.oom_score_adj", message.oom_score_adj, -MAX_SCORE, MAX_SCORE)
    for n, limit in enumerate(message.hugepage_limits):
        problems.given(f"{path}.hugepage_limits[{n}].page_size", limit.page_size)
    for key, value in message.unified.items():
        if not key or "/" in key or key in {".", ".."}:
            problems.add(f"{path}.unified", f"keys name files of a cgroup, like memory.high; {key!r} does not")
        problems.c_string(f"{path}.unified[{key}]", value)
    return Resources(
        cpu_period=message.cpu_period,
        cpu_quota=message.cpu_quota,
        cpu_shares=message.cpu_shares,
        memory_limit_in_bytes=message.memory_limit_in_bytes,
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=message.cpuset_cpus,
        cpuset_mems=message.cpuset_mems,
        hugepage_limits=tuple(HugepageLimit(limit.page_size, limit.limit) for limit in message.hugepage_limits),
        unified=dict(message.unified),
        memory_swap_limit_in_bytes=message.memory_swap_limit_in_bytes,
    )


def _check_cpu(problems: Problems, message: pb.LinuxContainerResources, path: str) -> None:
    if message.cpu_period:
        problems.number(f"{path}.cpu_period", message.cpu_period, *PERIOD)
    if message.cpu_quota < -1 or 0 < message.cpu_quota < MIN_QUOTA:
        problems.add(
            f"{path}.cpu_quota",
            f"must be -1 (no limit), 0 (not given) or from {MIN_QUOTA} µs on, is {message.cpu_quota}",
        )
    problems.not_negative(f"{path}.cpu_shares", message.cpu_shares)
    for field in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(message, field)
        if not _SET.issuperset(value.strip()):
            problems.add(f"{path}.{field}", f"must be a list of numbers and ranges like 0-2,7, is {value!r}")


def _check_memory(problems: Problems, message: pb.LinuxContainerResources, path: str) -> None:
    memory, swap = message.memory_limit_in_bytes, message.memory_swap_limit_in_bytes
    problems.not_negative(f"{path}.memory_limit_in_bytes", memory)
    if swap < -1:
        problems.add(f"{path}.memory_swap_limit_in_bytes", f"must be -1 (no limit) or from 0 on, is {swap}")
    elif 0 < swap < memory:
        problems.add(
            f"{path}.memory_swap_limit_in_bytes",
            f"is memory and swap together, so it must be at least memory_limit_in_bytes ({memory}), is {swap}",
        )


def from_update(request: pb.UpdateContainerResourcesRequest) -> Resources:
    """Return what UpdateContainerResources wants; it may want annotations only."""
    if not request.HasField("linux"):
        if not request.annotations:
            raise InvalidArgumentError("linux", "is missing")
        return Resources()
    problems = Problems()
    result = from_message(problems, request.linux, "linux")
    problems.check()
    return result


def to_message(resources: Resources) -> pb.LinuxContainerResources:
    """Return the settings as ContainerStatus shows them."""
    return pb.LinuxContainerResources(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory_limit_in_bytes=resources.memory_limit_in_bytes,
        oom_score_adj=resources.oom_score_adj,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepage_limits=[pb.HugepageLimit(page_size=i.page_size, limit=i.limit) for i in resources.hugepage_limits],
        unified=resources.unified,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_in_bytes,
    )
