"""Samples and what is said about them: least, median, 99th percentile, largest, number.

Out of scope: what is measured and how. Invariant: a summary is made of at least one sample; a system that could not
be measured has no summary at all, so an empty cell never looks like a zero.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Summary:
    """What a row says about one system, in the row's unit."""

    least: float
    median: float
    p99: float
    largest: float
    count: int


def summarise(samples: Sequence[float]) -> Summary:
    """Return the summary of at least one sample; p99 is the nearest rank, so it is a value that was seen."""
    ordered = sorted(samples)
    rank = max(0, math.ceil(0.99 * len(ordered)) - 1)
    return Summary(ordered[0], statistics.median(ordered), ordered[rank], ordered[-1], len(ordered))


@dataclass(slots=True)
class Samples:
    """Samples by row and system, as the groups of rows collect them."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, row: str, system: str, *values: float) -> None:
        """Add samples of one system to a row, in the row's unit."""
        self.values.setdefault(row, {}).setdefault(system, []).extend(values)

    def note(self, text: str) -> None:
        """Remember a sentence for the end of the report: a peer that is missing, a row that failed."""
        if text not in self.notes:
            self.notes.append(text)

    def of(self, row: str) -> dict[str, Summary]:
        """Return the summaries of one row by system."""
        return {name: summarise(values) for name, values in self.values.get(row, {}).items() if values}


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long one call took, in ms of wall time."""
    before = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - before) / 1e6
