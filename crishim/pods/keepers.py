"""Keepers and their sandboxes: listening to a keeper, acknowledging what it journals, and what follows its death.

A keeper that dies leaves containers without anyone who could report their end, write their log or join an exec.
They are killed through their cgroups at once: EXITED, 137 if something was killed, else 255, reason KeeperLost; the
sandbox is NOTREADY, and kubelet makes a new one.

Out of scope: how a death is noticed (engine: pidfd), and the network, which StopPodSandbox releases.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Sequence

from crishim.errors import CrishimError
from crishim.linux import processes
from crishim.linux.cgroups import apply
from crishim.pods import exits
from crishim.pods.context import Context, log
from crishim.pods.events import EventType
from crishim.pods.objects import Container, Sandbox
from crishim.pods.ports import Exit, Keeper
from crishim.pods.states import Stage
from crishim.pods.views import ContainerState

LOST = "its keeper ended unexpectedly; what was left of the container was killed"
STUCK = "its keeper ended unexpectedly, and its processes cannot be killed"


def listen(context: Context, sandbox: Sandbox, keeper: Keeper) -> None:
    """Make `keeper` the sandbox's, and take its reports from now on."""
    sandbox.keeper = keeper

    def on_exit(entry: Exit) -> None:
        if exits.on_exit(context, sandbox, entry):
            acknowledge(context, keeper, entry.seq)

    def on_lost() -> None:
        if sandbox.keeper is keeper:
            sandbox.keeper = None
            context.spawn(lost(context, sandbox), f"keeper of {sandbox.id} lost")

    keeper.on_lost = on_lost
    keeper.on_exit = on_exit


def acknowledge(context: Context, keeper: Keeper, seq: int) -> None:
    """Tell the keeper, without waiting, that the store has the entry."""
    context.spawn(_acknowledge(keeper, seq), "acknowledge")


async def _acknowledge(keeper: Keeper, seq: int) -> None:
    try:
        await keeper.ack(seq)
    except CrishimError as error:  # it is reported again, and changes nothing then
        log.debug("an exit could not be acknowledged", error=str(error))


async def lost(context: Context, sandbox: Sandbox) -> None:
    """End what a dead keeper left: its containers, and the sandbox's readiness."""
    if sandbox.ready:
        log.error("the keeper of a sandbox ended unexpectedly", pod=sandbox.id)
    end_process(sandbox.status.keeper_pid, sandbox.status.keeper_start)
    replay(context, sandbox, context.engine.journal(sandbox.id))
    running = [container for container in sandbox.containers.values() if container.running]
    await asyncio.gather(*(kill_orphans(context, container) for container in running))
    group = context.planner.layout.directories(context.planner.pod_group(sandbox.id, sandbox.spec.config))
    with contextlib.suppress(OSError):  # what was half started; stop removes the group, and reports what resists
        apply.kill(group, context.planner.layout.version)
    if sandbox.ready:
        sandbox.follow(dataclasses.replace(sandbox.status, stage=Stage.NOTREADY, reason=exits.KEEPER_LOST))
        context.tell(EventType.STOPPED, sandbox)


def end_process(pid: int, start_time: int) -> None:
    """SIGKILL a keeper that is there but does not answer; nothing else that may have its pid by now.

    Args:
        pid: as recorded; 0 for none.
        start_time: in clock ticks since boot (proc_pid_stat(5), field 22); the caller has compared the boot ids.
    """
    if pid <= 0 or start_time <= 0:
        return
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if processes.start_time(pid) == start_time:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def replay(context: Context, sandbox: Sandbox, entries: Sequence[Exit]) -> None:
    """Take the ends that a keeper journalled and that nobody committed; also of containers whose start was not."""
    for entry in entries:
        container = sandbox.containers.get(entry.container_id)
        if container is None or container.status.state is ContainerState.EXITED or container.lock.locked():
            continue
        exits.finish(context, container, exits.ended(container.status, entry))


async def settle(context: Context, sandbox: Sandbox) -> None:
    """Have a keeper that is met, or none, before something is ended; a silent one is killed with its groups."""
    await sandbox.meet()
    adopting = sandbox.adopting
    if adopting is None:
        return
    log.error("a keeper that does not answer is killed", pod=sandbox.id)
    adopting.cancel()
    await asyncio.wait({adopting})
    if sandbox.keeper is None:
        await lost(context, sandbox)


async def kill_orphans(context: Context, container: Container) -> None:
    """Kill a container that has no keeper, and commit its end; UNKNOWN if it cannot be killed. Later callers join."""
    await context.ends.run(f"orphans of {container.id}", None, lambda: _kill_orphans(context, container))


async def _kill_orphans(context: Context, container: Container) -> None:
    if not container.running:
        return
    planner = context.planner
    try:
        group = planner.container_group(container.id, container.sandbox.id, container.sandbox.spec.config)
        killed = await asyncio.to_thread(kill_group, planner.layout.directories(group), planner.layout.version)
    except (OSError, CrishimError) as error:
        log.error("a container without keeper cannot be killed", container=container.id, error=str(error))
        if container.status.state is ContainerState.RUNNING:
            container.follow(dataclasses.replace(container.status, state=ContainerState.UNKNOWN, message=STUCK))
        return
    code = exits.KILLED_CODE if killed else exits.UNKNOWN_CODE
    if container.running:
        exits.finish(context, container, exits.given_up(container.status, code, exits.KEEPER_LOST, LOST))


def kill_group(directories: tuple[str, ...], version: int) -> bool:
    """Kill all in a control group and remove it; tell whether there was something to kill. Blocks up to 5 s.

    Raises:
        OSError: processes are left that cannot be killed.
    """
    killed = bool(apply.pids(directories))
    apply.kill(directories, version)
    apply.remove(directories, patience=5.0)
    return killed
