"""cgroup settings, both ways. Memory in bytes, times in microseconds; 0 and "" mean not given."""

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.request import HugepageLimit, Resources


def from_message(message: pb.LinuxContainerResources) -> Resources:
    """Return the settings."""
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


def from_update(request: pb.UpdateContainerResourcesRequest) -> Resources:
    """Return what UpdateContainerResources wants; it may want annotations only."""
    if not request.HasField("linux"):
        if not request.annotations:
            raise InvalidArgumentError("linux", "is missing")
        return Resources()
    return from_message(request.linux)


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
