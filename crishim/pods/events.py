"""The bus of life-cycle events: CREATED, STARTED, STOPPED, DELETED of each container and sandbox, once, in order.

Publishing never waits: each subscriber has a bounded queue; what does not fit is dropped for that subscriber only
and counted by the observer. Out of scope: the streaming RPC (server) and a history; who subscribes sees what
happens from then on.

Invariant: a subscriber sees the events of one object in the order in which they happened.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from crishim.observe import Observer
from crishim.pods.views import ContainerView, SandboxView

QUEUE_LENGTH = 4096


class EventType(IntEnum):
    """CRI `ContainerEventType`."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Event:
    """One event; a sandbox's own events have `container` None and the sandbox's id as `id`."""

    kind: EventType
    id: str
    at: int
    sandbox: SandboxView | None
    container: ContainerView | None = None


class Subscription:
    """One subscriber's queue: an async iterator that ends at `close`."""

    def __init__(self, bus: "Bus", length: int) -> None:
        self._bus = bus
        self._queue: deque[Event] = deque()
        self._length = length
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._queue.popleft()

    def close(self) -> None:
        """End the subscription; what is queued can still be read."""
        self._closed = True
        self._bus.leave(self)
        self._rouse()

    def offer(self, event: Event) -> bool:
        """Queue an event; tell whether there was room."""
        if len(self._queue) >= self._length:
            return False
        self._queue.append(event)
        self._rouse()
        return True

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Bus:
    """All subscribers of one runtime."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._subscribers: list[Subscription] = []

    @property
    def active(self) -> bool:
        """Whether anyone listens; without, nobody need make an event."""
        return bool(self._subscribers)

    def subscribe(self, length: int = QUEUE_LENGTH) -> Subscription:
        """Return a new subscription whose queue holds `length` events."""
        subscription = Subscription(self, length)
        self._subscribers.append(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    def publish(self, event: Event) -> None:
        """Give an event to every subscriber that has room."""
        for subscription in self._subscribers:
            if not subscription.offer(event):
                self._observer.event_dropped()

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in tuple(self._subscribers):
            subscription.close()
