"""A named stack of undo steps: what a half-done change must take back, last step first.

A failure and the failures of its clean-up are both reported: the clean-up's go into the exception's notes, and
the names of the steps that failed are returned, so that the caller can record them for later.
"""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Step = Callable[[], Awaitable[object] | object]


class Undo:
    """Async context manager: on an exception all steps run in reverse; on success (`commit`) none does."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.failed: list[str] = []
        self._steps: list[tuple[str, Step]] = []

    def push(self, name: str, step: Step) -> None:
        """Add a step; `name` is for the report, like "release address"."""
        self._steps.append((name, step))

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
        while self._steps:
            name, step = self._steps.pop()
            try:
                result = step()
                if isinstance(result, Awaitable):
                    await result
            except Exception as fault:  # noqa: BLE001  every step must get its turn; the fault is reported
                self.failed.append(name)
                error.add_note(f"undo of {self.what}: {name}: {fault}")
