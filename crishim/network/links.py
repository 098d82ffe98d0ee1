"""Which pods' links the kernel has, and the end of those that are to go; on the event loop.

A namespace takes its links with it, but when is the kernel's affair: at once, or never, if some process still holds
it. So a link that is to go is *draining* until RTM_DELLINK says that it went; after a while it is deleted explicitly.
Invariant: `free` is called once for each drained link, and only when its name is free in the kernel.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from crishim.errors import CrishimError
from crishim.linux.netlink.monitor import LinkMonitor

_AGAIN_SECONDS = 5.0


class Background:
    """Tasks that nobody waits for, kept from being collected, and awaited at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, job: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a coroutine that handles its own errors."""
        task = asyncio.ensure_future(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait until all have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class PodLinks:
    """The links of one instance's pods.

    Args:
        delete: deletes a link by name; runs elsewhere, may raise `CrishimError`.
        free: told the pod id of a drained link that is gone.
        seconds: how long a namespace may take to go by itself.
        background: runs the deletions.
    """

    def __init__(
        self,
        delete: Callable[[str], Awaitable[bool]],
        free: Callable[[str], object],
        seconds: float,
        background: Background,
    ) -> None:
        self.present: set[str] = set()
        self.draining: dict[str, str] = {}  # link → pod id
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._delete_link = delete
        self._free = free
        self._seconds = seconds
        self._background = background
        self._monitor: LinkMonitor | None = None
        self._log = structlog.get_logger("crishim.network")

    def watch(self, other: Callable[[str], None], lost: Callable[[], object]) -> None:
        """Listen for links that go; `other` is told of links that are not ours, `lost` when news were dropped."""
        if self._monitor is None:
            self._monitor = LinkMonitor()
            asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read, other, lost)

    def close(self) -> None:
        """Stop listening and waiting; idempotent."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None

    def drain(self, link: str, pod_id: str) -> None:
        """Let a link go with its namespace, or explicitly after a while."""
        self.draining[link] = pod_id
        self._after(self._seconds, link)

    async def delete(self, link: str) -> None:
        """Delete a draining link now."""
        if link not in self.draining:
            return
        try:
            await self._delete_link(link)
        except CrishimError as error:
            self._log.warning("network: a link outlives its pod", link=link, error=str(error))
            self._after(_AGAIN_SECONDS, link)
        else:
            self.gone(link)

    def gone(self, link: str) -> None:
        """Note that a link is no more."""
        self.present.discard(link)
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        pod_id = self.draining.pop(link, None)
        if pod_id is not None:
            self._free(pod_id)

    def compare(self, there: frozenset[str], keep: set[str]) -> None:
        """Catch up with what the kernel has; links in `keep` are being made."""
        for link in sorted(self.draining.keys() - there):
            self.gone(link)
        self.present &= there | keep

    def _after(self, seconds: float, link: str) -> None:
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[link] = loop.call_later(seconds, lambda: self._background.spawn(self.delete(link)))

    def _read(self, other: Callable[[str], None], lost: Callable[[], object]) -> None:
        assert self._monitor is not None
        names, dropped = self._monitor.read()
        for name in names:
            if name in self.present:
                self.gone(name)
            else:
                other(name)
        if dropped:
            lost()
