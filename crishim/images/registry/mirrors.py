"""Which mirrors have failed lately: one memory for all pulls, so that a mirror that is away costs its time-out once.

A mirror that failed *rests*: it is asked only if the registry itself cannot be reached. It rests longer with each
failure in a row, and one answer to a later request ends that. Only mirrors rest; the registry itself is always asked.
Threads share this.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 60.0
LONGEST_SECONDS = 900.0
_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Failure:
    at: float
    until: float
    seconds: float
    reason: str


class Mirrors:
    """Remembers failures by an endpoint's URL.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._lock = threading.Lock()
        self._failures: dict[str, _Failure] = {}

    def resting(self, base: str) -> str:
        """Return why a mirror rests; empty if it may be asked."""
        with self._lock:
            failure = self._failures.get(base)
            return failure.reason if failure is not None and self.now() < failure.until else ""

    def failed(self, base: str, reason: str) -> float:
        """Let a mirror rest; return for how many seconds. Failures of requests that were under way together are one."""
        with self._lock:
            now = self.now()
            last = self._failures.pop(base, None)
            if last is None or now >= last.until:
                seconds = FIRST_SECONDS if last is None else min(2 * last.seconds, LONGEST_SECONDS)
                last = _Failure(now, now + seconds, seconds, reason)
            self._failures[base] = last
            while len(self._failures) > _KEPT:
                del self._failures[next(iter(self._failures))]
            return last.until - now

    def worked(self, base: str, since: float) -> None:
        """Forget a mirror's failures before `since`, when the request was sent that it has answered."""
        with self._lock:
            failure = self._failures.get(base)
            if failure is not None and failure.at < since:
                del self._failures[base]
