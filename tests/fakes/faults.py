"""Named steps of the fakes: each is recorded when it is reached, and can be told to fail once, or to wait."""

import asyncio

from crishim.errors import InternalError


class Faults:
    """What the fakes ask at each step."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.waiting: set[str] = set()
        self._failing: dict[str, Exception] = {}
        self._gates: dict[str, asyncio.Event] = {}

    def fail(self, step: str, error: Exception | None = None) -> None:
        """Make a step fail the next time it is reached."""
        self._failing[step] = error or InternalError(f"{step} was told to fail")

    def hold(self, step: str) -> asyncio.Event:
        """Make a step wait until the returned event is set."""
        self._gates[step] = asyncio.Event()
        return self._gates[step]

    def clear(self) -> None:
        """Forget all that was told."""
        self.waiting.clear()
        self._gates.clear()
        self._failing.clear()

    def step(self, name: str) -> None:
        """Reach a step that does not wait."""
        self.reached.append(name)
        error = self._failing.pop(name, None)
        if error is not None:
            raise error

    async def wait(self, name: str) -> None:
        """Reach a step that may wait."""
        await asyncio.sleep(0)
        gate = self._gates.get(name)
        if gate is not None:
            self.waiting.add(name)
            await gate.wait()
        self.step(name)
