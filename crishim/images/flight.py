"""Work that several callers share: one flight per key, and it ends when its last caller has gone.

A pull, a download and an unpacking are each done once however many want them; one caller's cancellation does not
fail the others, and work that nobody waits for any more is cancelled. (`pods.flight` is the other kind: work that
goes on without its caller.) Invariant: a key has at most one task at a time, also while a cancelled one winds up.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from crishim.images.threads import wait_out

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("ending", "task", "waiters")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiters = 0
        self.ending = False


class Shared(Generic[T]):
    """Calls in flight by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start `work` under `key` or join the flight that is there; return its result or raise its error."""
        while (flight := self._flights.get(key)) is not None and flight.ending:
            await asyncio.wait([flight.task])
        if flight is None:
            flight = self._start(key, work)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiters == 1 and not flight.task.done():
                flight.ending = True
                flight.task.cancel()
                await wait_out([flight.task])
            raise
        finally:
            flight.waiters -= 1

    async def cancel_all(self) -> None:
        """End every flight (the daemon stops)."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.ending = True
            flight.task.cancel()
        if flights:
            await asyncio.wait([flight.task for flight in flights])

    def _start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> _Flight[T]:
        flight: _Flight[T] = _Flight(asyncio.get_running_loop().create_task(work()))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _task: self._landed(key, flight))
        return flight

    def _landed(self, key: Hashable, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.cancelled():
            flight.task.exception()  # seen: if every caller left in the same moment, nobody else will look
