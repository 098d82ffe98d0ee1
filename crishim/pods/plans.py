"""A container's plan when it is needed after its making: from memory, from its file, or computed anew.

The file is written while the plan is executed. The plan is pure, so the last is always possible: for a container
that was never started, after a power failure that took the file, or when a newer version no longer reads what an
older one wrote. Out of scope: computing (`crishim.engine.plan`).
"""

import dataclasses

from crishim import codec
from crishim.engine.plan.container import ContainerInput
from crishim.engine.plan.host import HostView
from crishim.engine.plan.types import ContainerPlan
from crishim.errors import NotFoundError
from crishim.pods import hostpaths, logs
from crishim.pods.context import Context
from crishim.pods.objects import Container
from crishim.problems import Problems
from crishim.request import Resources


async def container_plan(context: Context, container: Container) -> ContainerPlan:
    """Return the plan of an existing container, and keep it in memory while the container can use it."""
    if container.plan is not None:
        return container.plan
    plan = stored_plan(context, container) or await recompute(context, container)
    container.plan = plan
    return plan


def stored_plan(context: Context, container: Container) -> ContainerPlan | None:
    """Return the plan that was written when the container was made; None if it cannot be read."""
    document = context.layers.read_plan(container.id)
    if document is None:
        return None
    try:
        return codec.loads(ContainerPlan, document)
    except codec.CodecError:
        return None


async def recompute(
    context: Context,
    container: Container,
    problems: Problems | None = None,
    resources: Resources | None = None,
    host: HostView | None = None,
) -> ContainerPlan:
    """Compute a container's plan from its record, with other limits if they are given.

    Args:
        context: of the runtime.
        container: which one.
        problems: where those of the request go; None: they are an error.
        resources: the limits to plan with instead of those that hold.
        host: what the host tells of the request; None: it is looked at.

    Raises:
        NotFoundError: its image is gone.
        InvalidArgumentError: the host has changed so that it cannot be planned any more.
    """
    found = Problems() if problems is None else problems
    spec = container.spec
    image = context.images.find(spec.image_id)
    if image is None:
        raise NotFoundError(f"container {container.id}: its image {spec.image_id} does not exist any more")
    config = dataclasses.replace(
        spec.config,
        mounts=spec.mounts,
        log_path=logs.placed(container.sandbox.spec, spec.log_path),
        resources=resources or container.status.resources or spec.config.resources,
    )
    plan = context.planner.container(
        found,
        ContainerInput(
            id=spec.id,
            sandbox_id=spec.sandbox_id,
            sandbox=container.sandbox.spec.config,
            config=config,
            image=image.config,
            layers=spec.layers,
            upper=context.layers.upper(spec.id),
            work=context.layers.work(spec.id),
            volumes=spec.volumes,
            host=await hostpaths.look(found, config) if host is None else host,
        ),
    )
    if problems is None:
        found.check()
    return plan
