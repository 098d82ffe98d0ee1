"""Rows of the pull: wall time, CPU time and memory of one image of 20,000 files, cold, from the registry on loopback.

Systems take turns, in another order in each round, each time with an empty store on a fresh file system of the same
kind. Memory is looked at in a round of its own, since the looking costs time.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from scripts.benchlib import ground, memory
from scripts.benchlib.measure import Samples
from scripts.benchlib.systems import System

ROWS = frozenset({"pull", "pull-cpu", "pull-memory"})
Survived = Callable[[str], "contextlib.AbstractContextManager[None]"]


def measure(
    makers: Mapping[str, Callable[[], System]],
    reference: str,
    scratch: str,
    rounds: int,
    samples: Samples,
    rows: frozenset[str],
    survived: Survived,
) -> None:
    """Take `rounds` samples of time and one of memory of each system.

    Args:
        makers: makes an instance of each system.
        reference: the image.
        scratch: where the file systems' files lie.
        rounds: how often.
        samples: where the figures go.
        rows: names of rows; memory is left out if nobody asked for it.
        survived: turns a failure of one run into a note.
    """
    for number in range(rounds if rows - {"pull-memory"} else 0):
        for name in sorted(makers, reverse=bool(number % 2)):
            with survived(f"pull on {name}"), _instance(makers[name], scratch, samples) as system:
                cpu, before = system.cage.cpu_ms(), time.perf_counter()
                system.client.pull(reference)
                samples.add("pull", name, time.perf_counter() - before)
                samples.add("pull-cpu", name, (system.cage.cpu_ms() - cpu) / 1e3)
    for name in makers if "pull-memory" in rows else ():
        with survived(f"pull-memory on {name}"), _instance(makers[name], scratch, samples) as system:
            before = memory.held(system.cage.processes())
            with _peak(system) as peak:
                system.client.pull(reference)
            samples.add("pull-memory", name, max(peak) - before)


@contextlib.contextmanager
def _instance(make: Callable[[], System], scratch: str, samples: Samples) -> Iterator[System]:
    """Start a system with its root on a fresh file system."""
    system = make()
    with ground.fresh(system.root, scratch) as made, system:
        samples.note(
            f"pull: {ground.ABOUT}" if made else "pull: no loop device: on the host's file system, as it is now"
        )
        os.sync()
        time.sleep(1)
        yield system


@contextlib.contextmanager
def _peak(system: System) -> Iterator[list[float]]:
    """Collect what all processes of a system hold, every 20 ms."""
    found: list[float] = []
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.02):
            found.append(memory.held(system.cage.processes()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()
        found.append(memory.held(system.cage.processes()))
