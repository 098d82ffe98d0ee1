"""The first half of a start: rows of the store become objects again, and keepers are taken over.

Rows that cannot be read go to the store's quarantine, with a sentence for the log; the others live on. A sandbox
whose boot is over, or whose keeper does not answer, is NOTREADY; its containers are EXITED with
255, never 0, unless the keeper's journal knows better. A keeper that answers tells what runs and what ended
meanwhile: true codes and times.

Each keeper is taken over on its own. A start waits for all that answer soon; one that is silent goes on being waited
for behind it (`Sandbox.adopting`), its sandbox and containers shown as the store has them, until it answers or the
engine gives it up.

Out of scope: what nobody owns (`reconcile`).
"""

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from crishim import codec
from crishim.errors import CrishimError
from crishim.pods import exits, keepers
from crishim.pods.context import Context, log
from crishim.pods.naming import image_reference
from crishim.pods.objects import Container, Rows, Sandbox
from crishim.pods.ports import Keeper
from crishim.pods.records import ContainerRecord, ContainerSpec, SandboxRecord
from crishim.pods.states import Stage
from crishim.pods.views import ContainerState

REBOOT = "Reboot"
REBOOTED = "the machine was restarted, or the runtime's state directory was cleared"
PATIENCE = 2.0
"""Seconds for which a start waits for keepers; they answer within milliseconds."""

NO_TRACE = "it ended while the daemon was away, and nothing tells how"

Record = TypeVar("Record", SandboxRecord, ContainerRecord)


class Row(Protocol):
    """One row of the store."""

    @property
    def id(self) -> str:
        """The object's id."""

    @property
    def document(self) -> bytes:
        """The object's document."""


class Table(Rows, Protocol):
    """The store's table with what a start needs."""

    def load(self) -> Iterable[Any]:
        """Return all rows."""

    def quarantine(self, identifier: str, reason: str, /) -> bool:
        """Take out a row that cannot be used."""


def load(context: Context, sandboxes: Table, containers: Table) -> None:
    """Fill the registry from the store, oldest first."""
    registry = context.registry
    for record in _records(SandboxRecord, sandboxes):
        registry.sandboxes.load(Sandbox(sandboxes, record.spec, record.status))
    for entry in _records(ContainerRecord, containers):
        sandbox = registry.sandboxes.find(entry.spec.sandbox_id)
        if sandbox is None or sandbox.id != entry.spec.sandbox_id:
            _quarantine(containers, entry.spec.id, f"its sandbox {entry.spec.sandbox_id} has no record")
            continue
        container = Container(containers, sandbox, _with_reference(context, entry.spec), entry.status)
        registry.containers.load(container)
        sandbox.containers[container.id] = container


def _with_reference(context: Context, spec: ContainerSpec) -> ContainerSpec:
    """Return a spec whose image has its reference; records of older versions do not hold it."""
    if spec.image_ref:
        return spec
    image = context.images.find(spec.image_id)
    reference = spec.image_id if image is None else image_reference(image, spec.config.image)
    return dataclasses.replace(spec, image_ref=reference)


def _records(kind: type[Record], table: Table) -> list[Record]:
    found = []
    for row in table.load():
        try:
            record = codec.loads(kind, row.document)
        except codec.CodecError as error:
            _quarantine(table, row.id, str(error))
            continue
        if record.spec.id != row.id:
            _quarantine(table, row.id, f"its document is that of {record.spec.id}")
            continue
        found.append(record)
    return sorted(found, key=lambda record: record.spec.created_at)


def _quarantine(table: Table, identifier: str, reason: str) -> None:
    log.error("a record cannot be used and was put into quarantine", id=identifier, reason=reason)
    table.quarantine(identifier, reason)


async def adopt_all(context: Context) -> None:
    """Take over every sandbox's keeper, or find that there is none; returns without those that are silent."""
    for sandbox in context.registry.sandboxes:
        if sandbox.status.stage is not Stage.CREATING:
            sandbox.adopting = context.recover(_adopt(context, sandbox), f"adoption of {sandbox.id}")
            sandbox.adopting.add_done_callback(sandbox.adopted)
    if tasks := [s.adopting for s in context.registry.sandboxes if s.adopting is not None]:
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE)
        for task in done:
            task.result()


async def _adopt(context: Context, sandbox: Sandbox) -> None:
    if sandbox.spec.boot_id != context.boot_id:
        await _rebooted(context, sandbox)
        return
    if sandbox.status.stage is Stage.NOTREADY and not sandbox.status.kernel_held:
        _end_all(context, sandbox, NO_TRACE)
        return
    try:
        keeper = await context.engine.adopt(sandbox.id)
    except CrishimError as error:
        log.error("a keeper cannot be taken over", pod=sandbox.id, error=str(error))
        keeper = None
    if keeper is None:
        await keepers.lost(context, sandbox)
        return
    await _take_over(context, sandbox, keeper)


async def _take_over(context: Context, sandbox: Sandbox, keeper: Keeper) -> None:
    """Bring the containers' records up to what the keeper knows."""
    running = dict(keeper.running)
    pending = list(keeper.exits)
    keepers.listen(context, sandbox, keeper)
    for identifier, started in running.items():
        container = sandbox.containers.get(identifier)
        if container is None or container.status.state is ContainerState.EXITED:
            await keeper.kill(identifier)  # its removal or failed start was committed, its end was not
        elif container.status.state is ContainerState.CREATED:
            container.follow(container.running_as(started))
    keepers.replay(context, sandbox, pending)
    for entry in pending:
        keepers.acknowledge(context, keeper, entry.seq)
    for container in sandbox.containers.values():
        if container.running and container.id not in running:
            status = exits.given_up(container.status, exits.UNKNOWN_CODE, exits.UNKNOWN, NO_TRACE)
            exits.finish(context, container, status)


async def _rebooted(context: Context, sandbox: Sandbox) -> None:
    """Nothing of the sandbox can exist: say so, and give its addresses back."""
    _end_all(context, sandbox, REBOOTED)
    held = sandbox.status.network_held
    if held:
        try:
            await context.network.detach(sandbox.id, sandbox.status.attachment)
            held = False
        except CrishimError as error:  # stop tries it again
            log.error("the network of a sandbox cannot be released", pod=sandbox.id, error=str(error))
    status = sandbox.status
    reason = status.reason or REBOOT
    new = dataclasses.replace(status, stage=Stage.NOTREADY, network_held=held, kernel_held=False, reason=reason)
    if new != status:
        sandbox.follow(new)


def _end_all(context: Context, sandbox: Sandbox, message: str) -> None:
    for container in sandbox.containers.values():
        if container.running:
            status = exits.given_up(container.status, exits.UNKNOWN_CODE, exits.UNKNOWN, message)
            exits.finish(context, container, status)
