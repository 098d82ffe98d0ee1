"""Rows of the pod's network: crishim's own times of attach and detach, and whole sandboxes on CNI, in turn.

The times of one pod are what its attach and its detach add to the daemon's metrics. Out of scope: containers.
"""

import functools
import re
import time
import urllib.request
from collections.abc import Sequence

from scripts.benchlib.measure import Samples, milliseconds
from scripts.benchlib.systems import Crishim, System

ROWS = frozenset({"network", "network-cni", "pod-cni"})
_SUM = re.compile(r'^crishim_network_(?:attach|detach)_duration_seconds_sum\{kind="\w+"\} (\S+)$', re.MULTILINE)
_SETTLE = 0.05


def attach(row: str, system: System, samples: Samples, rounds: int) -> None:
    """Take `rounds` samples of attach and detach together; one more before that is not counted."""
    assert isinstance(system, Crishim)
    for number in range(rounds + 1):
        before = _spent_ms(system)
        _sandbox(system)
        if number:
            samples.add(row, system.name, _spent_ms(system) - before)
        time.sleep(_SETTLE)


def sandboxes(systems: Sequence[System], samples: Samples, rounds: int) -> None:
    """Take `rounds` samples of a sandbox's whole life from each system; one more before that is not counted."""
    for number in range(rounds + 1):
        for system in systems:
            spent = milliseconds(functools.partial(_sandbox, system))
            if number:
                samples.add("pod-cni", system.name, spent)
            time.sleep(_SETTLE)


def _sandbox(system: System) -> None:
    system.client.discard(system.client.empty())


def _spent_ms(system: Crishim) -> float:
    with urllib.request.urlopen(f"http://{system.metrics}/metrics", timeout=10) as answer:
        return sum(float(value) for value in _SUM.findall(answer.read().decode())) * 1e3
