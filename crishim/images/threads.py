"""Blocking work in a thread of its own, awaited from the event loop.

Not an executor: its idle threads would cost memory, and a daemon that stops would wait for a registry's time-out.
How many run at a time is bounded by the callers' semaphores. Invariant of `through` and `wait_out`: when they return or
raise, the work has ended, so nothing works any more on files that the caller then removes or gives to others.
"""

import asyncio
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a new daemon thread; its result or exception is the await's.

    If the caller is cancelled the thread goes on, unheard: `work` must have its own way to learn that it should end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as fault:  # noqa: BLE001  handed to the awaiting task
            error = fault
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is closed: the daemon has stopped meanwhile

    threading.Thread(target=run, name=name[:15], daemon=True).start()
    return await future


async def through(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread to its end; a cancellation is raised only then. For work that is bounded by the disk."""
    running = asyncio.ensure_future(in_thread(name, work))
    await wait_out([running])
    return running.result()


async def wait_out(futures: "Collection[asyncio.Future[T]]") -> None:
    """Wait until all are done, however often the caller is cancelled meanwhile; the cancellation is raised then.

    Their exceptions count as seen: callers that want them ask for the results.
    """
    cancelled: asyncio.CancelledError | None = None
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    for future in futures:
        if not future.cancelled():
            future.exception()
    if cancelled is not None:
        raise cancelled
