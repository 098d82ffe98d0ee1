"""Ends of containers, as keepers report them: commit first, acknowledge after, publish.

A keeper numbers its entries and keeps each one until it is acknowledged; an entry seen twice changes nothing. If
the store cannot be written, the end is shown all the same but not acknowledged, so the next daemon hears of it
again. Out of scope: the log's completeness (the keeper reports an end only after the last line).

Reasons: `Completed` (code 0), `OOMKilled` (SIGKILL by the kernel's OOM killer: code 137 and the cgroup's counter;
a child that was OOM-killed while the first process ended otherwise is not it), `Error`,
`StartError` (128), `KeeperLost` (137 if we killed it, else 255), `Unknown` (255, ended by a reboot).
"""

import dataclasses

from crishim import clock
from crishim.pods.context import Context
from crishim.pods.events import EventType
from crishim.pods.objects import Container, Sandbox
from crishim.pods.ports import Exit
from crishim.pods.records import ContainerStatus
from crishim.pods.views import ContainerState

COMPLETED = "Completed"
ERROR = "Error"
OOM_KILLED = "OOMKilled"
START_ERROR = "StartError"
KEEPER_LOST = "KeeperLost"
UNKNOWN = "Unknown"

START_ERROR_CODE = 128
KILLED_CODE = 137
UNKNOWN_CODE = 255


def reason_of(exit_code: int, *, oom_killed: bool) -> str:
    """Return the CRI reason of an end that a keeper saw."""
    if oom_killed and exit_code == KILLED_CODE:
        return OOM_KILLED
    return ERROR if exit_code else COMPLETED


def on_exit(context: Context, sandbox: Sandbox, entry: Exit) -> bool:
    """Take one entry of a keeper's journal; tell whether it may be acknowledged.

    An entry of a container in the making (its start has not been committed yet) waits for that in
    `container.early_exit`; one of an unknown container is acknowledged and forgotten.
    """
    container = sandbox.containers.get(entry.container_id)
    if container is None or container.status.state is ContainerState.EXITED:
        return True
    if container.status.state is ContainerState.CREATED:
        container.end_early(entry)
        return False
    return finish(context, container, ended(container.status, entry))


def ended(status: ContainerStatus, entry: Exit) -> ContainerStatus:
    """Return the status after an end."""
    return dataclasses.replace(
        status,
        state=ContainerState.EXITED,
        pid=0,
        start_time=0,
        finished_at=max(entry.finished_at, status.started_at),
        exit_code=entry.exit_code,
        reason=reason_of(entry.exit_code, oom_killed=entry.oom_killed),
    )


def given_up(status: ContainerStatus, code: int, reason: str, message: str) -> ContainerStatus:
    """Return the status of a container whose end nobody saw."""
    return dataclasses.replace(
        status,
        state=ContainerState.EXITED,
        pid=0,
        start_time=0,
        finished_at=max(clock.now(), status.started_at),
        exit_code=code,
        reason=reason,
        message=message,
    )


def finish(context: Context, container: Container, status: ContainerStatus) -> bool:
    """Commit an EXITED status and publish it; tell whether the store has it."""
    stored = container.follow(status)
    container.plan = None
    context.stats.forget(container.id)
    context.tell(EventType.STOPPED, container.sandbox, container)
    return stored
