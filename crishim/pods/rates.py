"""CPU use per second from counters that only grow: pure.

A rate needs two samples that lie far enough apart; until then it is None, never a false 0. Calls in
quick succession get the last rate. A counter that went back (a container that was made anew) begins again.
"""

MIN_INTERVAL = 500_000_000
"""Nanoseconds between two samples that give a rate."""

_SECOND = 1_000_000_000


class Rates:
    """Last sample and rate by key."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[int, int, int | None]] = {}

    def rate(self, key: str, timestamp: int, total: int) -> int | None:
        """Return units per second (for CPU nanoseconds: nanocores), or None as long as it is not known.

        Args:
            key: whose counter.
            timestamp: of the sample, in nanoseconds.
            total: the counter.
        """
        before = self._samples.get(key)
        if before is None or total < before[1]:
            self._samples[key] = (timestamp, total, None)
            return None
        since, base, last = before
        elapsed = timestamp - since
        if elapsed < MIN_INTERVAL:
            return last
        rate = (total - base) * _SECOND // elapsed
        self._samples[key] = (timestamp, total, rate)
        return rate

    def forget(self, key: str) -> None:
        """The object is gone."""
        self._samples.pop(key, None)
