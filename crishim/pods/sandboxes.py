"""Run, stop and remove a sandbox.

Run: reserve the name (a CREATING row) → keeper with namespaces and cgroup → network → files → READY. Each step has
its undo, last first; if even an undo fails, the sandbox stays listed NOTREADY and stop and remove go on with it, so
nothing that is held is ever forgotten.

Stop: let nobody in → kill the containers → release the network → end the keeper → NOTREADY. Remove: stop, remove
the containers, the row. Both are idempotent, and finish what an interrupted earlier call left.

Out of scope: who may call when (`runtime` gives each call its flight), and recovery (`reconcile`).
"""

import asyncio
import dataclasses
import os

from crishim import clock
from crishim.errors import CrishimError, KernelError, UnavailableError
from crishim.ids import new_id
from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.pods import containers, disk, files, keepers, logs, stopping
from crishim.pods.context import Context
from crishim.pods.events import EventType
from crishim.pods.objects import Sandbox
from crishim.pods.ports import Keeper
from crishim.pods.records import SandboxSpec, sandbox_name
from crishim.pods.states import Stage
from crishim.request import NamespaceMode, SandboxConfig
from crishim.undo import Undo

STOPPED = "Stopped"
RUN_FAILED = "RunFailed"
CLOSE_WAIT = 5.0
"""Seconds that starts in a sandbox get to end before it is stopped."""


async def run(context: Context, config: SandboxConfig, handler: str) -> str:
    """Make a sandbox of a validated request; return its id.

    Raises:
        ResourceExhaustedError: the disk is full.
        AlreadyExistsError: the name is taken.
        CrishimError: a step failed; nothing is left but what could not be taken back.
    """
    disk.check(context.paths)
    directory = logs.resolve(config.log_directory)
    spec = SandboxSpec(new_id(), config, clock.now(), context.boot_id, handler, directory)
    context.registry.sandboxes.ensure_free(sandbox_name(config.metadata))
    plan = context.planner.pod(spec.id, config)
    sandbox = context.registry.new_sandbox(spec)
    async with Undo(f"sandbox {spec.id}") as undo:
        undo.push("forget the sandbox", lambda: _forget(context, sandbox, undo))
        began = clock.monotonic()
        keeper = await context.engine.start_pod(plan)
        undo.push("end the keeper", lambda: _end_keeper(context, sandbox))
        keepers.listen(context, sandbox, keeper)
        began = _phase(context, "keeper", began)
        attachment = None
        try:
            if own_network(config):
                undo.push("release the network", lambda: context.network.detach(spec.id, None))
                attachment = await _attach(context, sandbox, keeper)
                began = _phase(context, "network", began)
            files.write(keeper.files_fd, spec, context.planner.pod_hostname(config), attachment)
        finally:
            _close_fds(keeper)
        if sandbox.keeper is None:
            raise UnavailableError(f"sandbox {spec.id}: its keeper ended while it was made")
        ready = dataclasses.replace(
            sandbox.status,
            stage=Stage.READY,
            keeper_pid=keeper.pid,
            keeper_start=keeper.start_time,
            attachment=attachment,
            network_held=attachment is not None,
            kernel_held=True,
        )
        sandbox.change(ready)
        _phase(context, "commit", began)
    context.tell(EventType.CREATED, sandbox)
    context.tell(EventType.STARTED, sandbox)
    return spec.id


async def stop_once(context: Context, sandbox: Sandbox) -> None:
    """Stop a sandbox in the one flight that all who stop or remove it share."""
    await context.ends.run(f"stop {sandbox.id}", None, lambda: stop(context, sandbox))


async def stop(context: Context, sandbox: Sandbox) -> None:
    """Stop a sandbox with all its containers; again is fine, and tries again what did not work.

    Raises:
        DeadlineExceededError: a container does not end; the sandbox stays as it is.
        CrishimError: the network could not be released; the sandbox is NOTREADY and still holds it.
    """
    await keepers.settle(context, sandbox)
    await _close(sandbox)
    try:
        await _kill_containers(context, sandbox)
    except BaseException:
        sandbox.reopen()
        raise
    if sandbox.status.network_held:
        try:
            await context.network.detach(sandbox.id, sandbox.status.attachment)
        except BaseException:
            _not_ready(context, sandbox, network=True, kernel=True)
            raise
    if sandbox.status.kernel_held:
        try:
            await _end_keeper(context, sandbox)
        except BaseException:
            _not_ready(context, sandbox, network=False, kernel=True)
            raise
    _not_ready(context, sandbox, network=False, kernel=False)


async def _close(sandbox: Sandbox) -> None:
    """Let nobody in; a start or create that does not come to its end soon has to do without its keeper."""
    try:
        async with asyncio.timeout(CLOSE_WAIT):
            await sandbox.close()
    except TimeoutError:
        if sandbox.keeper is not None:
            sandbox.keeper.give_up()
        await sandbox.close()


async def remove(context: Context, sandbox: Sandbox) -> None:
    """Stop a sandbox, and remove it with all its containers."""
    await stop_once(context, sandbox)
    for container in tuple(sandbox.containers.values()):
        await containers.remove(context, container)
    context.registry.sandboxes.delete(sandbox)
    context.makes.forget(sandbox.name)
    context.tell(EventType.DELETED, sandbox)


def own_network(config: SandboxConfig) -> bool:
    """Tell whether the pod has a network namespace of its own."""
    return config.security.namespaces.network is not NamespaceMode.NODE


async def _attach(context: Context, sandbox: Sandbox, keeper: Keeper) -> Attachment:
    config = sandbox.spec.config
    meta = config.metadata
    ports = tuple(port for port in config.port_mappings if port.host_port)
    netns = PodNetns(sandbox.id, context.paths.pinned_netns(sandbox.id), keeper.netns_fd, keeper.netlink_fd)
    request = AttachRequest(
        sandbox.id, meta.name, meta.namespace, meta.uid, ports, config.annotations, config.dns, config.cgroup_parent
    )
    return await context.network.attach(netns, request)


async def _kill_containers(context: Context, sandbox: Sandbox) -> None:
    running = [container for container in sandbox.containers.values() if container.running]
    if sandbox.keeper is None:
        await asyncio.gather(*(keepers.kill_orphans(context, container) for container in running))
    elif len(running) == 1:
        await stopping.stop(running[0], 0)
    else:
        await asyncio.gather(*(stopping.stop(container, 0) for container in running))


def _not_ready(context: Context, sandbox: Sandbox, *, network: bool, kernel: bool) -> None:
    """Commit what the stop has reached; a row that cannot be written keeps no one from removing the sandbox."""
    old = sandbox.status
    new = dataclasses.replace(
        old,
        stage=Stage.NOTREADY,
        network_held=network,
        kernel_held=kernel and old.kernel_held,
        reason=old.reason or STOPPED,
    )
    if new == old:
        return
    context.stats.forget(sandbox.id)
    sandbox.follow(new)
    if old.stage is Stage.READY:
        context.tell(EventType.STOPPED, sandbox)


async def _end_keeper(context: Context, sandbox: Sandbox) -> None:
    """End the keeper, if it lives, and remove what it made; in a thread, since the kernel takes its time."""
    keeper, sandbox.keeper = sandbox.keeper, None
    if keeper is not None:
        await keeper.stop()
    group = context.planner.pod_group(sandbox.id, sandbox.spec.config)
    try:
        await asyncio.to_thread(context.engine.remove_pod, sandbox.id, group)
    except OSError as error:
        raise KernelError(f"sandbox {sandbox.id}: {error.strerror} {error.filename}", error.errno or 0) from None


def _forget(context: Context, sandbox: Sandbox, undo: Undo) -> None:
    """Give the name back, unless something could not be undone: then the sandbox stays, to be removed later."""
    failed = dataclasses.replace(
        sandbox.status,
        stage=Stage.NOTREADY,
        network_held="release the network" in undo.failed,
        kernel_held=bool(undo.failed),
        reason=RUN_FAILED,
    )
    if undo.failed:
        sandbox.follow(failed)
        return
    try:
        context.registry.sandboxes.delete(sandbox)
    except CrishimError:
        sandbox.accept(failed)  # its row resists: it is listed, so that whoever lists it can remove it
        raise


def _close_fds(keeper: Keeper) -> None:
    """Close what the keeper handed over; a namespace is free to go only when no one holds it."""
    fds = keeper.files_fd, keeper.netns_fd, keeper.netlink_fd
    keeper.files_fd = keeper.netns_fd = keeper.netlink_fd = -1
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _phase(context: Context, step: str, began: float) -> float:
    """Observe one step's seconds; return the time at which the next begins."""
    now = clock.monotonic()
    context.observer.start_phase(step, now - began)
    return now
