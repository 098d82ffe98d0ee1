"""The bus of life-cycle events: CREATED, STARTED, STOPPED, DELETED of each container and sandbox, once, in order.

Each event carries the pod as it was when the event was published: the sandbox's view and those of its containers
that are left. Publishing never waits and copies nothing: views are shared. A subscriber sees everything that happens
after `subscribe`, so who subscribes first and lists then misses nothing.

A subscriber that does not keep up costs a bounded queue: once it is full, an object's events merge into its newest
one, which tells all that the older ones told; where even that does not fit, the subscription ends with an error that
says to list anew. Merge first and end last: kubelet gives events up for good after its fifth ended stream.

Invariant: a subscriber sees the events of one object in the order in which they happened, and nothing is left out
without an error. Out of scope: the streaming RPC (server) and a history.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from crishim.errors import AbortedError, CrishimError, UnavailableError
from crishim.observe import Observer
from crishim.pods.views import ContainerView, SandboxView

QUEUE_LENGTH = 4096

BEHIND = (
    "the events were not read in time, and more than {0} objects have changed since: list pods and containers, and"
    " subscribe again"
)
ENDING = "the daemon is ending: subscribe again when it is back"


class EventType(IntEnum):
    """CRI `ContainerEventType`."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    `id` is the container's, or the sandbox's for an event of its own. `at` is when it was published, so the views are
    at least as new: kubelet takes it for the age of the pod's state. `containers` are all that the pod has, oldest
    first; one that was DELETED is not among them.
    """

    kind: EventType
    id: str
    at: int
    sandbox: SandboxView
    containers: tuple[ContainerView, ...] = ()


class Subscription:
    """One subscriber's queue: an async iterator that ends by raising what ended it.

    `ended` is done once nothing more will come: for those who wait for something else meanwhile.
    """

    def __init__(self, bus: "Bus", length: int) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bus = bus
        self._queue: deque[Event] = deque()
        self._newest: dict[str, Event] = {}
        self._length = length
        self._wake: asyncio.Future[None] | None = None
        self._error: CrishimError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            AbortedError: the subscriber is too far behind.
            UnavailableError: the bus was closed.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self.ended.done():
                raise StopAsyncIteration
            if self._queue:
                return self._queue.popleft()
            if self._newest:
                return self._newest.pop(next(iter(self._newest)))
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    def close(self) -> None:
        """End the subscription."""
        self.end(None)

    def end(self, error: CrishimError | None) -> None:
        """Let go of everything; the subscriber gets the error."""
        if self.ended.done():
            return
        self._error = error
        self.ended.set_result(None)
        self._queue.clear()
        self._newest.clear()
        self._bus.leave(self)
        self._rouse()

    def offer(self, event: Event) -> int:
        """Queue an event; return how many older ones it and the want of room have merged."""
        if not self._newest and len(self._queue) < self._length:
            self._queue.append(event)
            self._rouse()
            return 0
        before = len(self._queue) + len(self._newest) + 1
        for queued in (*self._queue, event):
            self._newest.pop(queued.id, None)  # the newest stands where it happened, at the end
            self._newest[queued.id] = queued
        self._queue.clear()
        merged = before - len(self._newest)
        if len(self._newest) > self._length:
            self.end(AbortedError(BEHIND.format(self._length)))
        return merged

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Bus:
    """All subscribers of one runtime."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._subscribers: list[Subscription] = []
        self._closed = False

    @property
    def active(self) -> bool:
        """Whether anyone listens; without, nobody need make an event."""
        return bool(self._subscribers)

    def subscribe(self, length: int = QUEUE_LENGTH) -> Subscription:
        """Return a new subscription whose queue holds `length` events; ended already after `close`."""
        subscription = Subscription(self, length)
        if self._closed:
            subscription.end(UnavailableError(ENDING))
        else:
            self._subscribers.append(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    def publish(self, event: Event) -> None:
        """Give an event to every subscriber."""
        for subscription in tuple(self._subscribers):
            merged = subscription.offer(event)
            if merged:
                self._observer.event_merged(merged)
            if subscription.ended.done():
                self._observer.events_ended()

    def close(self) -> None:
        """End all subscriptions, and those that are asked for later."""
        self._closed = True
        for subscription in tuple(self._subscribers):
            subscription.end(UnavailableError(ENDING))
