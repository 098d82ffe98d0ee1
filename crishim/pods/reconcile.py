"""The second half of a start: what nobody owns is removed and counted.

Four truths are compared: the store's rows, the keepers that answer, the control groups, and the pinned namespaces
with the directories beside them. A sandbox that was still CREATING when the daemon died is taken down; nobody ever
saw it. Directories, groups and pins are known as ours by where they lie and by a name that is a full id.

Each is taken down on its own; a start waits for those that go soon, the others (a keeper without a record that is
silent) go on behind it. Invariant: nothing that a row owns is touched. A part that resists is logged and left for the
next start.
"""

import asyncio
import dataclasses
import os

from crishim.errors import CrishimError
from crishim.ids import is_id
from crishim.pods.context import Context, log
from crishim.pods.objects import Sandbox
from crishim.pods.recover import PATIENCE
from crishim.pods.states import Stage
from crishim.request import Metadata, SandboxConfig

NOBODY = SandboxConfig(Metadata(""))
"""The configuration of a pod without a record: its control group is looked for below the instance's parent."""


async def reconcile(context: Context) -> None:
    """Remove what no row owns."""
    half_made = [s for s in context.registry.sandboxes if s.status.stage is Stage.CREATING]
    work = [context.recover(_take_down_row(context, s), f"removal of {s.id}") for s in half_made]
    owned = frozenset(sandbox.id for sandbox in context.registry.sandboxes)
    for kind, found in (
        ("keeper", _ids(context.paths.pods)),
        ("netns", _ids(context.paths.namespaces)),
        ("cgroup", _groups(context)),
    ):
        names = sorted(found - owned)
        owned |= found
        work += [context.recover(_take_down_stray(context, n, kind), f"removal of {n}") for n in names]
    if work:
        await asyncio.wait(work, timeout=PATIENCE)
    _sweep_layers(context)
    await _sweep_network(context)
    context.layers.sweep()


async def _take_down_row(context: Context, sandbox: Sandbox) -> None:
    if await _take_down(context, sandbox.id, sandbox.spec.config) and _forget(context, sandbox):
        context.observer.leak_reclaimed("sandbox")


async def _take_down_stray(context: Context, pod_id: str, kind: str) -> None:
    if await _take_down(context, pod_id, NOBODY):
        context.observer.leak_reclaimed(kind)


async def _take_down(context: Context, pod_id: str, config: SandboxConfig) -> bool:
    """End a pod that nobody knows: by its keeper if that answers, by force if not; tell whether it is gone."""
    log.warning("a pod without a record is removed", pod=pod_id)
    try:
        keeper = await context.engine.adopt(pod_id)
        if keeper is not None:
            await keeper.stop()
        await context.network.detach(pod_id, None)
        await asyncio.to_thread(context.engine.remove_pod, pod_id, context.planner.pod_group(pod_id, config))
    except (CrishimError, OSError) as error:
        log.error("a pod without a record resists", pod=pod_id, error=str(error))
        return False
    return True


def _forget(context: Context, sandbox: Sandbox) -> bool:
    """Remove the row of a pod that is gone; one that resists is listed, so that it can be removed later."""
    try:
        context.registry.sandboxes.delete(sandbox)
    except CrishimError as error:
        log.error("the record of a pod resists", pod=sandbox.id, error=str(error))
        sandbox.accept(dataclasses.replace(sandbox.status, stage=Stage.NOTREADY))
        return False
    return True


def _groups(context: Context) -> set[str]:
    """Return the pods that have a group below the instance's own parent; kubelet's parents hold more than ours."""
    found: set[str] = set()
    for directory in context.planner.layout.directories(context.config.cgroup_parent):
        found |= _ids(directory)
    return found


async def _sweep_network(context: Context) -> None:
    live = frozenset(sandbox.id for sandbox in context.registry.sandboxes if sandbox.status.network_held)
    try:
        removed = await context.network.reconcile(live)
    except CrishimError as error:  # NetworkReady says the same; the next start tries again
        log.error("the network cannot be reconciled", error=str(error))
        return
    if removed:
        context.observer.leak_reclaimed("link", removed)


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


def _ids(directory: str) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if is_id(name)}
    except FileNotFoundError:
        return set()
