"""Rows of single pods, the systems' samples taken in turn: start, its CPU time, exec, stop and remove.

Taking turns lets whatever else the machine does fall on all systems alike. Out of scope: many pods (population.py).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from scripts.benchlib.measure import Samples, milliseconds
from scripts.benchlib.systems import System

ROWS = frozenset({"pod-start", "pod-start-cpu", "exec", "stop-remove"})
TRUE = ("/bin/true",)
EXECS = 3
SETTLE = 0.1  # what a start leaves to be done afterwards is part of its CPU time


def measure(
    systems: Sequence[System], samples: Samples, rounds: int, survived: Callable[[str], AbstractContextManager[None]]
) -> None:
    """Take `rounds` samples of every row from each system; one more before that is not counted.

    Args:
        systems: whom to measure; one that fails takes no further turn, the others do.
        samples: where the figures go.
        rounds: how often.
        survived: turns a failure of one system into a note.
    """
    taking_turns = list(systems)
    for number in range(rounds + 1):
        for system in tuple(taking_turns):
            done = False
            with survived(f"pods on {system.name}"):
                _round(system, samples if number else Samples())
                done = True
            if not done:
                taking_turns.remove(system)


def _round(system: System, samples: Samples) -> None:
    cpu, before = system.cage.cpu_ms(), time.perf_counter_ns()
    pod = system.client.start()
    samples.add("pod-start", system.name, (time.perf_counter_ns() - before) / 1e6)
    time.sleep(SETTLE)
    samples.add("pod-start-cpu", system.name, system.cage.cpu_ms() - cpu)
    for _ in range(EXECS):
        samples.add("exec", system.name, milliseconds(lambda: system.client.execute(pod, TRUE)))
    samples.add("stop-remove", system.name, milliseconds(lambda: system.client.remove(pod)))
    time.sleep(SETTLE)
