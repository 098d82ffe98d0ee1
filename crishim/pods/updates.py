"""UpdateContainerResources: merge what is given into what holds, write it to the control group, keep it.

Only given fields change (0 and "" mean "not given"); oom_score_adj belongs to the start and stays as it was. The
daemon writes the files itself; a memory limit below what the container uses is refused before anything is written,
because the kernel would kill for it (field case K2). A container that does not run only gets the new values for
its start.

Out of scope: the order of writes and what a value means (`crishim.linux.cgroups`).
"""

import dataclasses
import errno

from crishim.engine.plan.cgroup import limits_of
from crishim.engine.plan.request import Resources
from crishim.errors import FailedPreconditionError, KernelError
from crishim.linux.cgroups import apply
from crishim.linux.cgroups.settings import Settings, validate
from crishim.linux.cgroups.update import plan_update
from crishim.pods.context import Context
from crishim.pods.objects import Container
from crishim.pods.plans import recompute
from crishim.pods.validate import Problems
from crishim.pods.views import ContainerState

_SCALARS = (
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "memory_limit_in_bytes",
    "cpuset_cpus",
    "cpuset_mems",
    "memory_swap_limit_in_bytes",
)


def merge(old: Resources, new: Resources) -> Resources:
    """Return `old` with every field that `new` gives."""
    given = {name: getattr(new, name) for name in _SCALARS if getattr(new, name)}
    pages = {limit.page_size: limit for limit in (*old.hugepage_limits, *new.hugepage_limits)}
    return dataclasses.replace(
        old, **given, hugepage_limits=tuple(pages.values()), unified={**old.unified, **new.unified}
    )


async def update(context: Context, container: Container, resources: Resources) -> None:
    """Change a container's limits.

    Raises:
        InvalidArgumentError: a value is wrong; all problems are named.
        FailedPreconditionError: the container has ended, or the limit is below its use; nothing was changed.
        KernelError: the kernel refused a value; the values before it are in force.
    """
    layout = context.planner.layout
    async with container.lock:
        state = container.status.state
        if state not in {ContainerState.CREATED, ContainerState.RUNNING}:
            raise FailedPreconditionError(f"container {container.id} is {state.name}; its limits cannot be changed")
        old = container.status.resources or container.spec.config.resources
        merged = merge(old, resources)
        if 0 < merged.memory_swap_limit_in_bytes < merged.memory_limit_in_bytes and not (
            resources.memory_swap_limit_in_bytes
        ):
            # Memory was raised past the old sum of both: the sum follows.
            merged = dataclasses.replace(merged, memory_swap_limit_in_bytes=merged.memory_limit_in_bytes)
        problems = Problems()
        problems.found.extend((f"linux.{field}", text) for field, text in validate(limits_of(merged), layout))
        problems.check()
        if merged == old:
            return
        if state is ContainerState.RUNNING:
            group = context.planner.container_group(container.id, container.sandbox.id, container.sandbox.spec.config)
            swap = context.planner.swap_accounting
            _write(plan_update(limits_of(merged), layout, group, swap=swap))
        container.change(dataclasses.replace(container.status, resources=merged))
        if state is ContainerState.CREATED:
            container.plan = recompute(context, container)
            container.frozen = b""


def _write(settings: Settings) -> None:
    try:
        apply.write_all((w.directory, w.file, w.value) for w in settings.writes)
    except OSError as error:
        raise KernelError(str(error.strerror), error.errno or errno.EIO) from None
