"""Rows of 110 pods, a node's usual limit: burst, teardown, lists, stats, memory and idle CPU.

One system after the other, since idle CPU and memory are looked at while nothing else runs. Each pod's container
waits for a line in a pipe, then writes 10,000 lines and sleeps, so that one population serves all rows.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scripts.benchlib import memory
from scripts.benchlib.cri import Pod
from scripts.benchlib.measure import Samples, milliseconds
from scripts.benchlib.systems import System

ROWS = frozenset(
    {"burst", "teardown", "list-containers", "list-sandboxes", "stats"}
    | {"memory-pod", "memory-rest", "memory-110", "cpu-idle", "cpu-lists"}
)
T = TypeVar("T")
R = TypeVar("R")
TRUE = ("/bin/true",)
PODS = 110
AT_ONCE = 10
LINES = 10_000
WRITER = f"mkfifo /go; read line < /go; lines {LINES * 100}; exec sleep 1000000"
WRITES = ("/bin/sh", "-c", WRITER)
TRIGGER = ("/bin/sh", "-c", "while ! [ -p /go ]; do sleep 0.01; done; echo go > /go")


def measure(system: System, samples: Samples, rounds: int, wanted: Iterable[str]) -> None:
    """Fill, look, empty; burst and teardown are repeated `rounds` times in all, the rest is done once.

    Args:
        system: a fresh instance, still without pods.
        samples: where the figures go.
        rounds: how often the population is made.
        wanted: names of rows, so that slow looks that nobody asked for are left out.
    """
    rows = ROWS.intersection(wanted)
    time.sleep(2)  # a daemon that has just started still tidies up
    samples.add("memory-rest", system.name, memory.held(system.resident))
    for number in range(rounds if rows & {"burst", "teardown"} else 1):
        pods = fill(system, samples, PODS)
        try:
            if number == 0:
                _look(system, samples, pods, rows)
        finally:
            empty(system, samples, pods)


def fill(system: System, samples: Samples, count: int) -> list[Pod]:
    """Start `count` pods, ten at a time, and add the row burst."""
    before = time.perf_counter()
    pods = _at_once(lambda _: system.client.start(WRITES), range(count))
    samples.add("burst", system.name, count / (time.perf_counter() - before))
    return pods


def empty(system: System, samples: Samples, pods: list[Pod]) -> None:
    """Stop and remove pods, ten at a time, and add the row teardown."""
    before = time.perf_counter()
    _at_once(system.client.remove, pods)
    samples.add("teardown", system.name, time.perf_counter() - before)


def _look(system: System, samples: Samples, pods: list[Pod], rows: frozenset[str] | set[str]) -> None:
    lists: dict[str, Callable[[], int]] = {
        "list-containers": system.client.containers,
        "list-sandboxes": system.client.sandboxes,
    }
    looks = [(name, call, 100) for name, call in lists.items()] + [("stats", system.client.stats, 20)]
    for name, call, times in looks:
        if name in rows:
            _expect(call(), len(pods), f"{system.name}: {name}")
            samples.add(name, system.name, *(milliseconds(call) for _ in range(times)))
    if "cpu-idle" in rows:
        time.sleep(3)
        samples.add("cpu-idle", system.name, *(_load(system, lambda: None) for _ in range(3)))
    if "cpu-lists" in rows:
        samples.add(
            "cpu-lists", system.name, *(_load(system, lambda: [call() for call in lists.values()]) for _ in "ab")
        )
    samples.add("memory-110", system.name, memory.held(system.resident))
    if "memory-pod" in rows:
        _use(system, pods)
        samples.add("memory-pod", system.name, memory.held(system.per_pod()) / len(pods))


def _use(system: System, pods: list[Pod]) -> None:
    """Three execs and 10,000 log lines in each pod."""
    for command in (TRIGGER, TRUE, TRUE):
        _at_once(functools.partial(_exec, system, command), pods)
    for pod in pods:
        _wait_lines(pod)
    time.sleep(1)


def _exec(system: System, command: tuple[str, ...], pod: Pod) -> bytes:
    return system.client.execute(pod, command)


def _wait_lines(pod: Pod) -> None:
    for _ in range(1000):
        with open(pod.log, "rb") as file:
            if sum(1 for _ in file) >= LINES:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{pod.log}: fewer than {LINES} lines")


def _load(system: System, each_second: Callable[[], object], seconds: int = 5) -> float:
    """Return the CPU that everything of a system uses, in percent of one CPU, over some seconds."""
    cpu, before = system.cage.cpu_ms(), time.perf_counter()
    for turn in itertools.count(1):
        each_second()
        time.sleep(max(0.0, before + turn - time.perf_counter()))
        if turn == seconds:
            break
    return (system.cage.cpu_ms() - cpu) / (time.perf_counter() - before) / 10


def _at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise RuntimeError(f"{what}: {found} objects, expected {wanted}")
