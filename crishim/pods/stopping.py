"""The end of a running container: a signal, a time of grace, SIGKILL for its whole cgroup, a bounded wait.

Calls share one stop: whoever comes later waits for the same end, and a shorter grace shortens it for all. SIGKILL
also ends what is stopped (SIGSTOP) or frozen, since the keeper kills through the cgroup and thaws it. A process
that even SIGKILL cannot end (D state) gives DeadlineExceededError after `KILL_WAIT`; the container
stays RUNNING, and a later stop tries again. A keeper that died meanwhile, or is given up since it is silent, leaves the
container to `keepers.lost`, whose work is waited for in the same way.

Invariant: at most one Stopping works for a container, and it ends when the container does or when it gives up.
Source: CRI `StopContainer`; signal(7).
"""

import asyncio
from typing import TYPE_CHECKING

from crishim.errors import CrishimError, DeadlineExceededError, UnavailableError
from crishim.pods import signals
from crishim.pods.objects import Container

if TYPE_CHECKING:
    from crishim.pods.ports import Keeper

KILL_WAIT = 10.0
"""Seconds that a killed container gets to die."""


class Stopping:
    """One stop in progress."""

    def __init__(self, container: Container, grace: float) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._container = container
        self._grace = grace
        self._deadline = loop.time() + grace
        self._expired: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self.task = loop.create_task(self._run(), name=f"stop {container.id}")

    def hasten(self, grace: float) -> None:
        """Shorten the grace if `grace` seconds from now end sooner."""
        deadline = self._loop.time() + grace
        if deadline < self._deadline:
            self._deadline = deadline
            if self._timer is not None:
                self._timer.cancel()
                self._arm()

    async def _run(self) -> None:
        container = self._container
        try:
            async with container.lock:
                if not container.running:
                    return
                keeper = container.sandbox.keeper
            ended = container.ended()
            if keeper is not None and self._loop.time() < self._deadline:
                await self._ask(keeper)
                self._arm()
                await asyncio.wait((ended, self._expired), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                if keeper is not None:
                    await self._kill(keeper)
                await asyncio.wait((ended,), timeout=KILL_WAIT)
            if not ended.done():
                raise DeadlineExceededError(
                    f"container {container.id}: its processes did not end within {KILL_WAIT:g} s of SIGKILL; they wait"
                    " in the kernel (state D) for a device or file server. It is still RUNNING: try again later"
                )
        finally:
            if self._timer is not None:
                self._timer.cancel()
            container.stopping = None

    async def _ask(self, keeper: "Keeper") -> None:
        """Send the stop signal; a container that just ended does not mind."""
        name = self._container.spec.stop_signal or signals.DEFAULT
        try:
            await keeper.signal(self._container.id, signals.parse(name) or signals.TERM)
        except CrishimError:
            if self._container.running:
                self._deadline = self._loop.time()  # it cannot be asked, so it is told

    async def _kill(self, keeper: "Keeper") -> None:
        """Have the container killed; a keeper that is gone has left it to be buried, a silent one is given up."""
        try:
            await keeper.kill(self._container.id)
        except DeadlineExceededError:
            keeper.give_up()
        except UnavailableError:
            return

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        if not self._expired.done():
            self._expired.set_result(None)


async def stop(container: Container, grace: float) -> None:
    """Stop a container and return when it has ended; one that does not run is stopped already.

    Args:
        container: which.
        grace: seconds between the stop signal and SIGKILL; 0 or less kills at once.

    Raises:
        DeadlineExceededError: it does not end.
        CrishimError: its keeper does not answer.
    """
    grace = max(grace, 0)
    stopping = container.stopping
    if stopping is None:
        if not container.running and not container.lock.locked():
            return
        stopping = container.stopping = Stopping(container, grace)
    else:
        stopping.hasten(grace)
    await asyncio.shield(stopping.task)
