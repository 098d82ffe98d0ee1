"""Calls in flight: what SIGUSR1 shows and a graceful stop waits for.

Invariant: a call is in the registry from before its first step until after its last, whatever ends it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from crishim import clock


class Stream(Protocol):
    """The client's end of a server-streaming call."""

    async def begin(self) -> None:
        """Tell the client that the call has begun."""

    async def write(self, message: bytes) -> None:
        """Send one encoded message; waits while the client does not read."""


class Call:
    """One RPC under way.

    Args:
        method: the RPC's name in log and metrics, like `RunPodSandbox` or `Images.Pull`.
        remaining: seconds until the caller's deadline, None without one.
        stream: where the messages of a server-streaming call go.
        received: the encoded messages of a client-streaming call.
    """

    __slots__ = ("deadline", "method", "received", "started", "stream", "subject")

    def __init__(
        self,
        method: str,
        remaining: float | None = None,
        stream: Stream | None = None,
        received: AsyncIterator[bytes] | None = None,
    ) -> None:
        self.method = method
        self.started = clock.monotonic()
        self.deadline = None if remaining is None else self.started + remaining
        self.stream = stream
        self.received = received
        self.subject: dict[str, str] = {}

    def expired(self) -> bool:
        """Tell whether the caller's deadline has passed."""
        return self.deadline is not None and clock.monotonic() >= self.deadline

    def seconds(self) -> float:
        """Return how long the call has taken so far."""
        return clock.monotonic() - self.started

    def describe(self) -> str:
        """Return one line for the log: method, what it is about, age and time left."""
        about = "".join(f" {key}={value}" for key, value in self.subject.items())
        left = "" if self.deadline is None else f", {self.deadline - clock.monotonic():.1f} s left"
        return f"{self.method}{about}: {self.seconds():.1f} s{left}"


class Calls:
    """The registry of calls in flight."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(sorted(self._calls, key=lambda call: call.started))

    def add(self, call: Call) -> None:
        """A call began."""
        self._calls.add(call)
        self._idle.clear()

    def discard(self, call: Call) -> None:
        """A call ended."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    def describe(self) -> list[str]:
        """Return one line for each call, oldest first."""
        return [call.describe() for call in self]

    async def wait_idle(self) -> None:
        """Wait until no call is in flight."""
        await self._idle.wait()
