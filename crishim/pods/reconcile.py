"""The second half of a start: what nobody owns is removed and counted.

Four truths are compared: the store's rows, the keepers that answer, the control groups, and the pinned namespaces
with the directories beside them. A sandbox that was still CREATING when the daemon died is taken down; nobody ever
saw it. Directories, groups and pins are known as ours by where they lie and by a name that is a full id.

Invariant: nothing that a row owns is touched. A part that resists is logged and left for the next start.
"""

import asyncio
import os

from crishim.errors import CrishimError
from crishim.ids import is_id
from crishim.linux.cgroups import apply
from crishim.pods import leftovers
from crishim.pods.context import Context, log
from crishim.pods.states import Stage


async def reconcile(context: Context) -> None:
    """Remove what no row owns."""
    for sandbox in [s for s in context.registry.sandboxes if s.status.stage is Stage.CREATING]:
        await _take_down(context, sandbox.id)
        context.registry.sandboxes.delete(sandbox)
        context.observer.leak_reclaimed("sandbox")
    owned = frozenset(sandbox.id for sandbox in context.registry.sandboxes)
    for pod_id in sorted(set(_ids(context.paths.pods)) - owned):
        await _take_down(context, pod_id)
        context.observer.leak_reclaimed("keeper")
    await asyncio.to_thread(_sweep_pins, context, owned)
    await asyncio.to_thread(_sweep_groups, context, owned)
    _sweep_layers(context)
    live = frozenset(sandbox.id for sandbox in context.registry.sandboxes if sandbox.status.network_held)
    removed = await context.network.reconcile(live)
    if removed:
        context.observer.leak_reclaimed("link", removed)
    context.layers.sweep()


async def _take_down(context: Context, pod_id: str) -> None:
    """End a pod without a row: by its keeper if that answers, by force if not."""
    log.warning("a pod without a record is removed", pod=pod_id)
    try:
        keeper = await context.engine.adopt(pod_id)
        if keeper is not None:
            await keeper.stop()
        await context.network.detach(pod_id, None)
    except CrishimError as error:
        log.error("a pod without a record resists", pod=pod_id, error=str(error))
    await asyncio.to_thread(_remove, context, pod_id)


def _remove(context: Context, pod_id: str) -> None:
    sandbox = context.registry.sandboxes.find(pod_id)
    if sandbox is not None:
        group = context.planner.pod_group(pod_id, sandbox.spec.config)
        _kill_group(context, context.planner.layout.directories(group))
    leftovers.remove_pin(context.paths, pod_id)
    leftovers.remove_directory(context.paths, pod_id)


def _sweep_pins(context: Context, owned: frozenset[str]) -> None:
    for pod_id in set(_ids(context.paths.namespaces)) - owned:
        leftovers.remove_pin(context.paths, pod_id)
        context.observer.leak_reclaimed("netns")


def _sweep_groups(context: Context, owned: frozenset[str]) -> None:
    """Remove groups of pods below the instance's own parent; kubelet's parents hold more than ours."""
    layout = context.planner.layout
    found: set[str] = set()
    for directory in layout.directories(context.config.cgroup_parent):
        found.update(_ids(directory))
    for pod_id in found - owned:
        if _kill_group(context, layout.directories(f"{context.config.cgroup_parent}/{pod_id}")):
            context.observer.leak_reclaimed("cgroup")


def _kill_group(context: Context, directories: tuple[str, ...]) -> bool:
    try:
        apply.kill(directories, context.planner.layout.version)
        apply.remove(directories, patience=5.0)
    except OSError as error:
        log.error("a control group without owner cannot be removed", group=directories[0], error=str(error))
        return False
    return True


def _sweep_layers(context: Context) -> None:
    """Remove the layers of creates that did not finish, with their holds."""
    containers = context.registry.containers
    for container_id in context.layers.known():
        if containers.find(container_id) is not None:
            continue
        for step in (context.layers.discard, context.images.release):
            try:
                step(container_id)
            except CrishimError as error:
                log.error("the layer of no container resists", container=container_id, error=str(error))
        context.observer.leak_reclaimed("container_dir")


def _ids(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if is_id(name)]
    except FileNotFoundError:
        return []
