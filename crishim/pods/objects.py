"""A sandbox and a container in memory: record, view, and those who wait for them.

Every change is written through: check the move (`states`), write the row, swap the status, void the view. Views
are made on demand and kept until the next change, so whoever converts them can cache by identity.

Invariant: what memory says, the store says too, but for what the world did already and no row could be written of
(`follow`): the next daemon learns that from keepers and journals.
Out of scope: finding objects (`registry`), and what a change does to the world.
"""

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from crishim import codec
from crishim.errors import CrishimError, FailedPreconditionError, UnavailableError
from crishim.log import get_logger
from crishim.pods import signals
from crishim.pods.naming import shown_image
from crishim.pods.records import (
    ContainerSpec,
    ContainerStatus,
    SandboxSpec,
    SandboxStatus,
    container_name,
    join,
    sandbox_name,
)
from crishim.pods.states import SHOWN, Stage, check_container, check_sandbox
from crishim.pods.views import ContainerState, ContainerView, SandboxState, SandboxView

if TYPE_CHECKING:
    from crishim.engine.plan.types import ContainerPlan
    from crishim.pods.ports import Exit, Keeper, Started


log = get_logger("crishim.pods")

MEET_WAIT = 5.0
"""Seconds for which a call waits for a keeper that the daemon has not met yet."""


class Rows(Protocol):
    """The table of one kind of object (`crishim.store`)."""

    def insert(self, identifier: str, name: str, document: bytes, parent: str = "") -> None:
        """Add a row; AlreadyExistsError names the owner of a taken name."""

    def update(self, identifier: str, document: bytes) -> None:
        """Replace a row's document."""

    def delete(self, identifier: str) -> bool:
        """Remove a row."""


class Ending(Protocol):
    """A stop in progress (`stopping`)."""

    task: "asyncio.Task[None]"

    def hasten(self, grace: float) -> None:
        """Shorten the grace if `grace` seconds from now end sooner."""


class Sandbox:
    """One sandbox: its record, its keeper, its containers, oldest first."""

    def __init__(self, rows: Rows, spec: SandboxSpec, status: SandboxStatus) -> None:
        self.id = spec.id
        self.name = sandbox_name(spec.config.metadata)
        self.spec = spec
        self.status = status
        self.containers: dict[str, Container] = {}
        self.keeper: Keeper | None = None
        self.adopting: asyncio.Task[None] | None = None
        self._rows = rows
        self._encoded = codec.dumps(spec)
        self._view: SandboxView | None = None
        self._users = 0
        self._closing = False
        self._idle: asyncio.Future[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether containers can be made and started."""
        return self.status.stage is Stage.READY

    @property
    def document(self) -> bytes:
        """The row's document."""
        return join(self._encoded, self.status)

    @property
    def view(self) -> SandboxView:
        """What is shown; a new object only after a change."""
        if self._view is None:
            self._view = _sandbox_view(self.spec, self.status)
        return self._view

    def change(self, status: SandboxStatus) -> None:
        """Write a new status through."""
        check_sandbox(self.id, self.status.stage, status.stage)
        self._rows.update(self.id, join(self._encoded, status))
        self.accept(status)

    def follow(self, status: SandboxStatus) -> None:
        """Take a status that the world has taken already: in memory alone where the store cannot be written."""
        try:
            self.change(status)
        except CrishimError as error:
            log.error("the state of a sandbox could not be stored", pod=self.id, error=str(error))  # noqa: TRY400  no fault
            self.accept(status)

    def accept(self, status: SandboxStatus) -> None:
        """Take a new status in memory."""
        self.status = status
        self._view = None

    def live_keeper(self) -> "Keeper":
        """Return the keeper.

        Raises:
            UnavailableError: it was there before this daemon and has not answered yet.
            FailedPreconditionError: there is none.
        """
        if self.keeper is None and self.adopting is not None:
            raise UnavailableError(f"the keeper of sandbox {self.id} has not answered yet: try again")
        if self.keeper is None:
            raise FailedPreconditionError(f"sandbox {self.id} has no keeper any more: stop and remove it")
        return self.keeper

    def adopted(self, _task: "asyncio.Task[None]") -> None:
        """Note that the keeper of an earlier daemon was taken over, or found to be gone."""
        self.adopting = None

    async def meet(self) -> None:
        """Wait a moment for a keeper that has not been taken over yet."""
        if self.adopting is not None:
            await asyncio.wait({self.adopting}, timeout=MEET_WAIT)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Hold the sandbox open while a container is made or started in it."""
        if self._closing or not self.ready:
            raise FailedPreconditionError(f"sandbox {self.id} is not ready: containers need a new sandbox")
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def close(self) -> None:
        """Let no one in any more, and wait until those inside have left."""
        self._closing = True
        while self._users:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def reopen(self) -> None:
        """Take `close` back: the stop did not work."""
        self._closing = False


class Container:
    """One container: its record, its plan while it is needed, and its end.

    `frozen` is the plan as it is sent and stored (`codec.frozen`), from its making to the start.
    """

    def __init__(self, rows: Rows, sandbox: Sandbox, spec: ContainerSpec, status: ContainerStatus) -> None:
        self.id = spec.id
        self.name = container_name(spec.sandbox_id, spec.config)
        self.sandbox = sandbox
        self.spec = spec
        self.status = status
        self.plan: ContainerPlan | None = None
        self.frozen = b""
        self.lock = asyncio.Lock()
        self.stopping: Ending | None = None
        self.early_exit: Exit | None = None
        self._early: asyncio.Future[None] | None = None
        self._rows = rows
        self._encoded = codec.dumps(spec)
        self._view: ContainerView | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def running(self) -> bool:
        """Whether its processes may exist."""
        return self.status.state in {ContainerState.RUNNING, ContainerState.UNKNOWN}

    @property
    def document(self) -> bytes:
        """The row's document."""
        return join(self._encoded, self.status)

    @property
    def view(self) -> ContainerView:
        """What is shown; a new object only after a change."""
        if self._view is None:
            self._view = _container_view(self.spec, self.status)
        return self._view

    def change(self, status: ContainerStatus) -> None:
        """Write a new status through."""
        check_container(self.id, self.status.state, status.state)
        self._rows.update(self.id, join(self._encoded, status))
        self.accept(status)

    def follow(self, status: ContainerStatus) -> bool:
        """Take a status that the world has taken already; tell whether the store has it, or memory alone."""
        try:
            self.change(status)
        except CrishimError as error:
            log.error("the state of a container could not be stored", container=self.id, error=str(error))  # noqa: TRY400
            self.accept(status)
            return False
        return True

    def running_as(self, started: "Started") -> ContainerStatus:
        """Return the status of the container with its program running."""
        return dataclasses.replace(
            self.status,
            state=ContainerState.RUNNING,
            pid=started.pid,
            start_time=started.start_time,
            started_at=started.started_at,
            user=started.user,
        )

    def end_early(self, entry: "Exit") -> None:
        """Keep an end that came before the start was committed."""
        self.early_exit = entry
        if self._early is not None and not self._early.done():
            self._early.set_result(None)

    async def ended_early(self, patience: float) -> bool:
        """Wait, so many seconds, for the end of a program whose start is not committed; tell whether it came."""
        if self.early_exit is None:
            self._early = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._early,), timeout=patience)
        return self.early_exit is not None

    def accept(self, status: ContainerStatus) -> None:
        """Take a new status in memory only."""
        self.status = status
        self._view = None
        if not self.running and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def ended(self) -> asyncio.Future[None]:
        """Return a future that is done once the container does not run."""
        if self._ended is None or self._ended.done():
            self._ended = asyncio.get_running_loop().create_future()
            if not self.running:
                self._ended.set_result(None)
        return self._ended


def _sandbox_view(spec: SandboxSpec, status: SandboxStatus) -> SandboxView:
    config = spec.config
    return SandboxView(
        id=spec.id,
        metadata=config.metadata,
        state=SHOWN.get(status.stage, SandboxState.NOTREADY),
        created_at=spec.created_at,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=spec.handler,
        ips=status.attachment.ips if status.attachment is not None else (),
        namespaces=config.security.namespaces,
    )


def _container_view(spec: ContainerSpec, status: ContainerStatus) -> ContainerView:
    config = spec.config
    return ContainerView(
        id=spec.id,
        sandbox_id=spec.sandbox_id,
        metadata=config.metadata,
        config=config,
        image=shown_image(config.image),
        image_ref=spec.image_ref,
        image_id=spec.image_id,
        state=status.state,
        created_at=spec.created_at,
        started_at=status.started_at,
        finished_at=status.finished_at,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        log_path=spec.log_path,
        resources=status.resources,
        user=status.user,
        stop_signal=spec.stop_signal or signals.DEFAULT,
    )
