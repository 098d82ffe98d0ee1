"""Resources of a container → its control group's plan. Pure."""

from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import CgroupPlan
from crishim.linux.cgroups.devices import DeviceRule
from crishim.linux.cgroups.settings import Limits, plan_settings
from crishim.request import Resources


def limits_of(resources: Resources, *, pids_limit: int = 0, devices: tuple[DeviceRule, ...] | None = None) -> Limits:
    """Return the limits that CRI resources ask for, for a start and for an update alike.

    Args:
        resources: of the request.
        pids_limit: processes allowed; 0 leaves the number as it is.
        devices: what may be used; None leaves device access as it is.
    """
    return Limits(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory_limit=resources.memory_limit_in_bytes,
        memory_swap_limit=resources.memory_swap_limit_in_bytes,
        pids_limit=pids_limit,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepages=tuple((limit.page_size, limit.limit) for limit in resources.hugepage_limits),
        unified=resources.unified,
        devices=devices,
    )


def plan_cgroup(group: str, limits: Limits, settings: PlanSettings) -> CgroupPlan:
    """Return the directories and writes of one group."""
    planned = plan_settings(limits, settings.layout, group, swap=settings.swap)
    return CgroupPlan(
        settings.layout.version,
        settings.layout.directories(group),
        planned.writes,
        planned.device_program,
    )
