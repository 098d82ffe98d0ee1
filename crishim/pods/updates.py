"""UpdateContainerResources: merge what is given into what holds, write it to the control group, keep it.

Only given fields change (0 and "" mean "not given"); oom_score_adj belongs to the start and stays as it was. The
daemon writes the files itself, always and all of them: what the record says need not be what the kernel has. A memory
limit below what the container uses is refused before anything is written, because the kernel would kill for it. A
container that does not run only gets the new values for its start.

Invariant: the kernel, the record and the plan have the new limits, or all have the old ones.
Out of scope: the order of writes and what a value means (`crishim.linux.cgroups`).
"""

import dataclasses
import errno
from collections.abc import Sequence

from crishim.engine.plan.cgroup import limits_of
from crishim.errors import CrishimError, FailedPreconditionError, InvalidArgumentError, KernelError
from crishim.linux.cgroups import room
from crishim.linux.cgroups.limits import lacking
from crishim.linux.cgroups.settings import DEFAULT_PERIOD, Limits, Write
from crishim.linux.cgroups.update import RefusedError, change, field_of, plan_update, read_current, take_back
from crishim.pods.admission.admission import admit_update
from crishim.pods.context import Context, log
from crishim.pods.objects import Container
from crishim.pods.plans import recompute
from crishim.pods.views import ContainerState
from crishim.problems import Problems
from crishim.request import Resources

_SCALARS = (
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "memory_limit_in_bytes",
    "cpuset_cpus",
    "cpuset_mems",
    "memory_swap_limit_in_bytes",
)
_VALUES = frozenset({errno.EINVAL, errno.ERANGE, errno.EDOM, errno.E2BIG, errno.EACCES, errno.ENOSPC, errno.EOPNOTSUPP})
"""What the kernel answers for a value that it does not take; cpusets(7) has EACCES and ENOSPC among them."""


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
        InvalidArgumentError: a value is wrong, or the kernel refused it; all problems are named, nothing was changed.
        FailedPreconditionError: the container has ended, or the limit is below its use; nothing was changed.
        CrishimError: the kernel or the store failed; nothing was changed, or the notes say what was.
    """
    layout = context.planner.layout
    async with container.lock:
        state = container.status.state
        if state not in {ContainerState.CREATED, ContainerState.RUNNING}:
            raise FailedPreconditionError(f"container {container.id} is {state.name}; its limits cannot be changed")
        merged = merge(container.status.resources or container.spec.config.resources, resources)
        if 0 < merged.memory_swap_limit_in_bytes < merged.memory_limit_in_bytes and not (
            resources.memory_swap_limit_in_bytes
        ):
            # Memory was raised past the old sum of both: the sum follows.
            merged = dataclasses.replace(merged, memory_swap_limit_in_bytes=merged.memory_limit_in_bytes)
        limits = limits_of(merged)
        problems = Problems()
        admit_update(problems, merged)
        problems.extend(lacking(limits, layout), "linux.")
        group = context.planner.container_group(container.id, container.sandbox.id, container.sandbox.spec.config)
        check_host(problems, context, container, limits, "linux", read_current(layout, group).cpu_period)
        problems.check()
        if state is ContainerState.CREATED:
            plan = await recompute(context, container, resources=merged)
            container.change(dataclasses.replace(container.status, resources=merged))
            container.plan, container.frozen = plan, b""
            return
        old = _write(plan_update(limits, layout, group, swap=context.planner.swap_accounting).writes, limits)
        try:
            container.change(dataclasses.replace(container.status, resources=merged))
        except CrishimError as error:
            _note(error, take_back(old))
            raise


def check_host(
    problems: Problems, context: Context, container: Container, limits: Limits, where: str, period: int = DEFAULT_PERIOD
) -> None:
    """Compare limits with what the host and the pod's group have; those that are wrong already are not judged again.

    Args:
        problems: of the request so far.
        context: of the runtime.
        container: whose limits they are.
        limits: of the request.
        where: the field's path that their names stand below.
        period: µs of the bandwidth period where they give none.
    """
    if problems:
        return
    planner, sandbox = context.planner, container.sandbox
    parent = planner.pod_group(sandbox.id, sandbox.spec.config)
    found = room.host_problems(limits, planner.layout, parent, period)
    if not found and limits.unified and container.status.state is ContainerState.CREATED:
        group = planner.container_group(container.id, sandbox.id, sandbox.spec.config)
        try:
            found = room.refused_keys(limits, planner.layout, group)
        except OSError as error:
            raise KernelError(f"try unified limits in {group}: {error.strerror}", error.errno or errno.EIO) from None
    problems.extend(found, f"{where}.")


def _write(writes: tuple[Write, ...], limits: Limits) -> list[Write]:
    """Put the new values in force; return what takes them back."""
    try:
        return change(writes)
    except RefusedError as refused:
        error = _answer(refused, limits)
        _note(error, refused.stuck)
        raise error from None


def _answer(refused: RefusedError, limits: Limits) -> CrishimError:
    field = f"linux.{field_of(refused.write, limits)}"
    if refused.errno in _VALUES:
        return InvalidArgumentError(field, f"the kernel refuses it ({refused}); the old limits stay")
    if refused.errno == errno.EBUSY:
        return FailedPreconditionError(f"{field}: what it takes away is in use ({refused}); the old limits stay")
    if refused.errno in {errno.ENOENT, errno.ENODEV}:
        return FailedPreconditionError(f"the container has ended meanwhile ({refused})")
    return KernelError(f"write {refused.write.file}={refused.write.value}", refused.errno)


def _note(error: CrishimError, stuck: Sequence[Write]) -> None:
    """Tell of old values that the kernel did not take back; the next update writes all values again."""
    for write in stuck:
        text = f"{write.file}={write.value} could not be written back"
        error.add_note(text)
        log.error("an old limit could not be put in force again", directory=write.directory, value=text)
