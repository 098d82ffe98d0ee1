"""Rows that need an instance for themselves: log throughput, restart.

Invariant: a log counts only when it is whole (every line is there), a restart only when all pods are listed again as
ready.
"""

import os
import time

from scripts.benchlib import population
from scripts.benchlib.cri import Pod
from scripts.benchlib.measure import Samples
from scripts.benchlib.systems import System

LOG_BYTES = 200_000_000
RESTART_PODS = 50


def log(system: System, samples: Samples, rounds: int) -> None:
    """Row log: megabytes of the container's output a second, from the log's first byte to its last."""
    for _ in range(rounds):
        pod = system.client.start(("/bin/lines", str(LOG_BYTES)))
        try:
            seconds = _written(pod)
            _check(pod)
        finally:
            system.client.remove(pod)
        samples.add("log", system.name, LOG_BYTES / 1e6 / seconds)


def restart(system: System, samples: Samples, rounds: int) -> None:
    """Row restart: from SIGKILL of the daemon to the answer that lists all 50 pods as ready."""
    pods = population.fill(system, Samples(), RESTART_PODS)
    try:
        for _ in range(rounds):
            time.sleep(0.5)
            before = time.perf_counter_ns()
            system.kill()
            system.start()
            found = system.client.sandboxes()
            samples.add("restart", system.name, (time.perf_counter_ns() - before) / 1e6)
            if found != len(pods):
                raise RuntimeError(f"{system.name}: {found} of {len(pods)} pods are ready after the restart")
    finally:
        population.empty(system, Samples(), pods)


def _written(pod: Pod) -> float:
    """Return the seconds from the first byte in the log to its last line."""
    begun = 0.0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not begun and os.path.getsize(pod.log):
            begun = time.perf_counter()
        if begun and _tail(pod.log).endswith(b"END\n"):
            return time.perf_counter() - begun
        time.sleep(0.0005 if not begun else 0.002)
    raise RuntimeError(f"{pod.log}: the last line is missing")


def _tail(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return file.read()


def _check(pod: Pod) -> None:
    """Every line must be in the log: what is fast because it drops lines is not fast."""
    found = 0
    with open(pod.log, "rb") as file:
        while block := file.read(1 << 20):
            found += block.count(b"\n")
    if found != LOG_BYTES // 100:
        raise RuntimeError(f"{pod.log}: {found} lines, expected {LOG_BYTES // 100}")
