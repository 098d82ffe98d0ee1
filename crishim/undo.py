"""A named stack of undo steps: what a half-done change must take back, last step first.

A failure and the failures of its clean-up are both reported: the clean-up's go into the exception's notes, and
the names of the steps that failed are returned, so that the caller can record them for later.

Invariant: every step gets its turn and a deadline of its own, whatever the others do and whoever is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Step = Callable[[], Awaitable[object] | object]

DEADLINE = 60.0
"""Seconds that a step gets where it asks for no others."""


class Undo:
    """Async context manager: on an exception all steps run in reverse; on success (`commit`) none does."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.failed: list[str] = []
        self._steps: list[tuple[str, Step, float]] = []

    def push(self, name: str, step: Step, seconds: float = DEADLINE) -> None:
        """Add a step that gets so many seconds; `name` is for the report, like "release address"."""
        self._steps.append((name, step, seconds))

    def commit(self) -> None:
        """Forget all steps: the change is whole."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
            return
        work = asyncio.get_running_loop().create_task(self._all(error), name=f"undo of {self.what}")
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError as late:  # ours, not the task's: it goes on, and we wait for it
                cancelled = late
        if cancelled is not None:
            raise cancelled from error

    async def _all(self, error: BaseException) -> None:
        while self._steps:
            name, step, seconds = self._steps.pop()
            try:
                await _run(step, seconds)
            except (Exception, asyncio.CancelledError) as fault:  # noqa: BLE001  every step must get its turn
                self.failed.append(name)
                error.add_note(f"undo of {self.what}: {name}: {str(fault) or type(fault).__name__}")


async def _run(step: Step, seconds: float) -> None:
    """Run one step; TimeoutError once its time has passed."""
    try:
        async with asyncio.timeout(seconds) as limit:
            result = step()
            if isinstance(result, Awaitable):
                await result
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"did not end within {seconds:g} s") from None
        raise
