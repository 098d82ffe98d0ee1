"""The keeper's event loop: epoll over fds, timers, and child exits; one thread, no asyncio.

`selectors` would do the same with more memory per pod; this is its useful part. A callback that raises is a fault
of ours: it is reported on stderr (the daemon's log) and the loop goes on, since containers depend on it.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps in enums, which cost many page copies
import os
import select
import time
from collections.abc import Callable

from crishim.outlet import complain

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

Callback = Callable[[], None]


class Loop:
    """Dispatches readiness, timers and SIGCHLD."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, Callback]] = []
        self._wake, self._woken_by = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._on_child: Callback = _nothing
        self._running = True
        self.add(self._wake, self._drain_wake)

    def watch_children(self, callback: Callback) -> None:
        """Call `callback` after children have ended."""
        self._on_child = callback
        _signal.set_wakeup_fd(self._woken_by, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, _handle)

    def add(self, fd: int, callback: Callback, events: int = READ) -> None:
        """Call `callback` while `fd` is ready."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change what is waited for."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`; must come before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callback) -> None:
        """Call `callback` once after `seconds`."""
        self._timers.append((time.monotonic() + seconds, callback))

    def stop(self) -> None:
        """Leave `run` after the present round."""
        self._running = False

    def close(self) -> None:
        """Let go of its descriptors, where the process goes on after `run`."""
        _signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wake)
        os.close(self._woken_by)

    def run(self) -> None:
        """Dispatch until `stop`."""
        while self._running:
            for fd, _ in self._epoll.poll(self._patience()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    guard(callback)
            if self._timers:
                self._fire()

    def _patience(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(when for when, _ in self._timers) - time.monotonic())

    def _fire(self) -> None:
        now = time.monotonic()
        due = [callback for when, callback in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for callback in due:
            guard(callback)

    def _drain_wake(self) -> None:
        os.read(self._wake, 4096)
        self._on_child()


def _nothing() -> None:
    """No callback is set."""


def _handle(_number: int, _frame: object) -> None:
    """Exist: a signal that is handled, even by nothing, writes to the wakeup fd."""


def guard(callback: Callback) -> None:
    """Call a callback; what it raises is reported, and the loop goes on."""
    try:
        callback()
    except Exception as error:  # noqa: BLE001  the loop serves every container of the pod and must go on
        complain(f"crishim keeper {os.getpid()}: {type(error).__name__}: {error}")
