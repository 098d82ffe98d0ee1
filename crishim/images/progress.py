"""How far a pull, a push or an archive is: one item per blob, looked at several times a second.

Nothing is told from the threads that do the work: whoever wants to know looks at what they count anyway, so that a
transfer without a watcher costs nothing more. Invariant: what is sent last is the state at the end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from crishim.images.threads import wait_out

T = TypeVar("T")
_SECONDS = 0.2


class State(Enum):
    """Where a blob is on its way (`crishim.v1.State`)."""

    WAITING = 1
    TRANSFERRING = 2
    UNPACKING = 3
    DONE = 4
    PRESENT = 5
    MOUNTED = 6
    SKIPPED = 7


@dataclass(frozen=True, slots=True)
class Item:
    """One blob: its digest (or what stands for it), what it is, its state, and bytes so far and in all (0: unknown)."""

    id: str
    kind: str
    state: State
    current: int = 0
    total: int = 0


Report = Callable[[Sequence[Item]], Awaitable[None]]
"""Takes the items that changed."""


async def reported(work: Coroutine[Any, Any, T], look: Callable[[], Iterable[Item]], report: Report) -> T:
    """Run `work` and report what `look` sees meanwhile; a cancellation, or a report that fails, ends the work."""
    task = asyncio.get_running_loop().create_task(work)
    seen: dict[str, Item] = {}
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=_SECONDS)
            changed = [item for item in look() if seen.get(item.id) != item]
            if changed:
                seen |= {item.id: item for item in changed}
                await report(changed)
            if done:
                return task.result()
    finally:
        if not task.done():
            task.cancel()
            await wait_out([task])
