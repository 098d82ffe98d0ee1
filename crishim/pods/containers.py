"""Create, start and remove a container; its stop is `stopping`, its end `exits`.

Create makes nothing in the kernel: a directory for what the container will write, a hold on the image's layers,
the plan (which finds every problem of the request), the row. Start has the keeper execute the plan: either the
program runs, or the container is EXITED with code 128 and reason StartError, and the error names the step, path and
errno. Remove ends what runs, gives the layers back and forgets the row; what an interrupted remove
left, the next one finishes.

Out of scope: who may call when (`runtime` gives each call its flight).
"""

import asyncio
import dataclasses

from crishim import clock, codec
from crishim.engine.plan.cgroup import limits_of
from crishim.engine.plan.mounts import takes_volume, volume_paths
from crishim.errors import CrishimError, DeadlineExceededError, FailedPreconditionError, KernelError, NotFoundError
from crishim.ids import new_id
from crishim.images import volumes
from crishim.images.threads import through
from crishim.pods import disk, exits, hostpaths, keepers, logs, signals, stopping
from crishim.pods.context import Context, log
from crishim.pods.events import EventType
from crishim.pods.naming import image_reference
from crishim.pods.objects import Container, Sandbox
from crishim.pods.plans import container_plan, recompute
from crishim.pods.ports import Keeper, Started
from crishim.pods.records import ContainerSpec, ContainerStatus, container_name
from crishim.pods.updates import check_host
from crishim.pods.views import ContainerState
from crishim.problems import Problems
from crishim.request import ContainerConfig, ImageConfig, Mount
from crishim.undo import Undo

MAX_VOLUMES = 256
"""Most volumes of an image; each is a mount, and images may list any number."""


async def create(context: Context, sandbox: Sandbox, config: ContainerConfig, problems: Problems) -> str:
    """Make a container; return its id.

    Args:
        context: of the runtime.
        sandbox: its pod.
        config: the request, admitted.
        problems: of the request so far.

    Raises:
        InvalidArgumentError: the request has problems; nothing is left.
        ResourceExhaustedError: the disk is full.
        NotFoundError: the image is not there; nothing was made.
        AlreadyExistsError: the name is taken.
    """
    disk.check(context.paths)
    with sandbox.use():
        name = container_name(sandbox.id, config)
        context.registry.containers.ensure_free(name)
        image = context.images.find(config.image.image)
        if image is None:
            problems.check()
            raise NotFoundError(f"image {config.image.image!r} does not exist here: pull it first")
        log_path = logs.log_file(problems, sandbox.spec.config.log_directory, config.log_path)
        stop_signal = _stop_signal(config, image.config)
        examined = await hostpaths.examine(problems, config)
        began = clock.monotonic()
        identifier = new_id()
        async with Undo(f"container {identifier}") as undo:
            undo.push("release the image", lambda: context.images.release(identifier))
            layers = context.images.hold(image.id, identifier)
            undo.push("discard the layer", lambda: context.layers.discard(identifier))
            context.layers.make(identifier, layers[-1] if layers else "")
            made = await _volumes(context, identifier, image.config, layers, examined.mounts, problems)
            spec = ContainerSpec(
                id=identifier,
                sandbox_id=sandbox.id,
                config=config,
                created_at=clock.now(),
                image_id=image.id,
                layers=layers,
                mounts=examined.mounts,
                log_path=log_path,
                stop_signal=stop_signal,
                volumes=made,
                image_ref=image_reference(image, config.image),
            )
            container = context.registry.new_container(sandbox, spec, ContainerStatus(resources=config.resources))
            container.plan = await recompute(context, container, problems, host=examined.view)
            check_host(problems, context, container, limits_of(config.resources), "config.linux.resources")
            problems.check()
            await hostpaths.make_missing(config, examined)
            container.frozen = codec.frozen(container.plan)
            context.registry.insert_container(container)
        context.observer.start_phase("create", clock.monotonic() - began)
        context.tell(EventType.CREATED, sandbox, container)
        return identifier


async def start(context: Context, container: Container) -> None:
    """Start a created container.

    Raises:
        FailedPreconditionError: it is not CREATED, or its sandbox is not ready.
        ResourceExhaustedError: the disk is full; the container stays CREATED.
        CrishimError: its program could not be started; the container is EXITED.
    """
    async with container.lock:
        if container.status.state is not ContainerState.CREATED:
            state = container.status.state.name
            raise FailedPreconditionError(f"container {container.id} is {state}; only a CREATED one can be started")
        disk.check(context.paths)
        with container.sandbox.use():
            await _start(context, container)


async def _start(context: Context, container: Container) -> None:
    sandbox = container.sandbox
    await sandbox.meet()
    keeper = sandbox.live_keeper()
    began = clock.monotonic()
    try:
        logs.ensure_directory(logs.placed(sandbox.spec, container.spec.log_path))
        started = await _execute(context, container, keeper)
    except CrishimError as error:
        await _fail(context, container, error)
        raise
    try:
        container.change(container.running_as(started))
    except CrishimError as error:
        await _take_back(context, container, keeper, started, error)
        raise
    context.observer.start_phase("start", clock.monotonic() - began)
    context.tell(EventType.STARTED, sandbox, container)
    entry, container.early_exit = container.early_exit, None
    if entry is not None and exits.on_exit(context, sandbox, entry):
        keepers.acknowledge(context, keeper, entry.seq)
    elif sandbox.keeper is not keeper and container.running:
        await keepers.kill_orphans(context, container)


async def _execute(context: Context, container: Container, keeper: Keeper) -> Started:
    """Have the plan executed, and write it down for later meanwhile; it is pure, so a file that fails costs nothing."""
    plan = container.frozen or codec.frozen(await container_plan(context, container))
    container.frozen = b""
    starting = asyncio.get_running_loop().create_task(keeper.start_container(plan), name=f"start {container.id}")
    await asyncio.sleep(0)  # the keeper has it now, and takes milliseconds
    try:
        context.layers.write_plan(container.id, plan)
    except KernelError as error:
        log.warning("the plan of a container could not be kept", container=container.id, error=str(error))
    return await starting


async def _fail(context: Context, container: Container, error: CrishimError) -> None:
    """Commit a failed start: EXITED, 128, StartError, both times set."""
    keeper = container.sandbox.keeper
    if isinstance(error, DeadlineExceededError) and keeper is not None:
        try:  # it may have come to run after all
            await keeper.kill(container.id)
        except CrishimError as second:
            error.add_note(f"kill of {container.id}: {second}")
    now = clock.now()
    failed = dataclasses.replace(container.status, started_at=now)
    status = exits.given_up(failed, exits.START_ERROR_CODE, exits.START_ERROR, str(error))
    stored = exits.finish(context, container, status)
    entry, container.early_exit = container.early_exit, None
    if entry is not None and keeper is not None and stored:
        keepers.acknowledge(context, keeper, entry.seq)


async def _take_back(
    context: Context, container: Container, keeper: Keeper, started: Started, error: CrishimError
) -> None:
    """End a program whose start cannot be stored, so that the error leaves nothing behind; the start has failed then.

    One that does not end is shown as RUNNING, in memory alone: it can be stopped, and the next daemon hears of it.
    """
    ended = False
    try:
        await keeper.kill(container.id)
        ended = await container.ended_early(stopping.KILL_WAIT)
    except CrishimError as second:
        error.add_note(f"kill of {container.id}: {second}")
    if ended or container.sandbox.keeper is not keeper:  # what a keeper that has gone left is killed as a whole
        await _fail(context, container, error)
    else:
        container.accept(container.running_as(started))


async def remove(context: Context, container: Container) -> None:
    """Remove a container, killing it first if it runs.

    Raises:
        DeadlineExceededError: it does not end; it stays RUNNING and listed.
    """
    if container.running or container.lock.locked():
        await end(context, container)
    async with container.lock:
        if container.running:  # a start came in between
            raise FailedPreconditionError(f"container {container.id} was started meanwhile: remove it again")
        if context.registry.containers.find(container.id) is not container:
            return
        context.layers.discard(container.id)
        context.images.release(container.id)
        context.registry.delete_container(container)
        context.stats.forget_usage(container.id)
        context.makes.forget(container.name)
        context.makes.forget(f"start {container.id}")
        context.tell(EventType.DELETED, container.sandbox, container)


async def end(context: Context, container: Container) -> None:
    """Kill a container that may run, with its keeper or without one."""
    await keepers.settle(context, container.sandbox)
    if container.sandbox.keeper is None:
        if container.running:
            await keepers.kill_orphans(context, container)
        if container.running:
            raise DeadlineExceededError(f"container {container.id}: {keepers.STUCK}")
        return
    await stopping.stop(container, 0)


async def _volumes(
    context: Context,
    container_id: str,
    image: ImageConfig,
    layers: tuple[str, ...],
    requested: tuple[Mount, ...],
    problems: Problems,
) -> tuple[Mount, ...]:
    """Make the directories of the image's volumes, with what the image has there; they go with the container.

    The CRI has no word for them: they are no mounts of the request, and its status does not show them.
    """
    wanted = volume_paths(image.volumes, requested)
    if len(wanted) > MAX_VOLUMES:
        problems.add("config.image", f"has {len(wanted)} volumes, and a container may have {MAX_VOLUMES}")
    if not wanted or problems:
        return ()
    home = context.layers.volumes(container_id)
    made = await through(
        "volumes", lambda: volumes.make(layers, wanted, home, lambda place: takes_volume(place, requested))
    )
    return tuple(Mount(container_path=place, host_path=directory) for directory, place in made)


def _stop_signal(config: ContainerConfig, image: ImageConfig) -> str:
    """Return the CRI's name of the stop signal: the request's, else the image's, else "".

    An image's that is none is passed over, as it must not stop a pod from starting.
    """
    return signals.cri_name(config.stop_signal or image.stop_signal)
