"""Work that changes the world outlives its caller: one flight per key, and equal retries join it.

gRPC cancels a handler in the middle when the client's deadline passes. Half-made pods and "name is reserved" are
what follows in other runtimes. Here the work runs in a task of its own; callers wait for it
shielded. A retry under the same key joins the flight if it carries an equal request, else AlreadyExistsError
names the owner.

If every caller has gone before the result came, the result is kept as *undelivered*: the next equal request gets
it, and so the retries of a client with a short deadline converge; nobody else ever does.

Invariant: a key has at most one task; a result is delivered to those who joined, or to one later caller.
Out of scope: persistence; after a restart of the daemon every connection is new and the client lists first.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from crishim.errors import AlreadyExistsError

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
Report = Callable[[str, BaseException], object]


class _Flight(Generic[T]):
    __slots__ = ("delivered", "request", "task", "waiters")

    def __init__(self, request: object, task: asyncio.Task[T]) -> None:
        self.request = request
        self.task = task
        self.waiters = 0
        self.delivered = False


class Flights(Generic[T]):
    """Calls in flight by key.

    Args:
        report: called with key and error when work failed and no caller was left to hear it.
        keep: whether undelivered results are kept; not for idempotent work, which is simply done again.
    """

    def __init__(self, report: Report, *, keep: bool = True) -> None:
        self._report = report
        self._keep = keep
        self._flights: dict[str, _Flight[T]] = {}
        self._undelivered: dict[str, tuple[object, T]] = {}

    async def run(self, key: str, request: object, work: Work[T]) -> T:
        """Start `work` under `key`, or join the flight that carries an equal request; return its result.

        Raises:
            AlreadyExistsError: a different request flies under this key.
            CancelledError: the caller gave up; the work goes on.
        """
        kept = self._undelivered.get(key)
        if kept is not None and kept[0] == request:
            del self._undelivered[key]
            return kept[1]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(key, request, work)
        elif flight.request != request:
            raise AlreadyExistsError(f"{key}: another request under this name is in progress and differs from this one")
        flight.waiters += 1
        try:
            result = await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            flight.waiters -= 1
            self._settle(key, flight)
            raise
        except Exception:
            flight.waiters -= 1
            flight.delivered = True
            raise
        flight.waiters -= 1
        flight.delivered = True
        return result

    def forget(self, key: str) -> None:
        """The object is gone: an undelivered result under `key` is void."""
        self._undelivered.pop(key, None)

    async def drain(self, patience: float) -> None:
        """Wait until nothing flies (for an orderly end of the daemon); what takes longer is called off and undone.

        Args:
            patience: seconds to wait, and once more for the undoing.
        """
        for call_off in (False, True):
            tasks = [flight.task for flight in self._flights.values()]
            if not tasks:
                return
            if call_off:
                for task in tasks:
                    task.cancel()
            await asyncio.wait(tasks, timeout=patience)

    def __len__(self) -> int:
        return len(self._flights)

    def _start(self, key: str, request: object, work: Work[T]) -> _Flight[T]:
        flight: _Flight[T] = _Flight(request, asyncio.get_running_loop().create_task(work(), name=key))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _task: self._landed(key, flight))
        return flight

    def _landed(self, key: str, flight: _Flight[T]) -> None:
        del self._flights[key]
        self._settle(key, flight)

    def _settle(self, key: str, flight: _Flight[T]) -> None:
        """Keep the result of work that is done and that no caller heard of."""
        if flight.waiters or flight.delivered or not flight.task.done() or flight.task.cancelled():
            return
        flight.delivered = True
        error = flight.task.exception()
        if error is not None:
            self._report(key, error)
        elif self._keep:
            self._undelivered[key] = (flight.request, flight.task.result())
