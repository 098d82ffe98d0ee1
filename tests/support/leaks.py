"""The leak check: what is there after a test and was not there before it.

Compared are mounts, cgroups of all hierarchies, network namespaces, links, processes, nftables tables, System V
objects and this process's descriptors. Only links are given time (5 s): the kernel takes a veth down after its
namespace, asynchronously. What is found is reported, then removed, so that one leak fails one test.

A running daemon's spawner replaces a spare keeper that became a pod's: so many of them, below a spawner that was
there before, belong to the daemon and not to the test. One is told by its name, which it has a moment after its fork.
Where the engine is this very process, so do as many sockets that such a spawner has made.
"""

import contextlib
import gc
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace

from crishim.engine.client import SPARES
from tests.support import machine
from tests.support.ownership import SCOPE, Scope

GRACE = 5.0
"""Seconds that the kernel has to take down the links of namespaces that are gone."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that a test left behind."""

    kind: str
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine at one moment: kind → name → detail; processes apart, as their owner is asked later."""

    things: dict[str, dict[str, str]]
    processes: dict[str, machine.Process]


def snapshot() -> Snapshot:
    """Read the machine's state."""
    processes = machine.processes()
    return Snapshot(
        {
            "mount": machine.mounts(),
            "cgroup": machine.cgroups(),
            "link": machine.links(),
            "nft table": machine.tables(),
            "ipc": machine.ipc(),
            "fd": machine.descriptors(),
            "netns": machine.namespaces("net", processes),
        },
        processes,
    )


def leaks_since(before: Snapshot, scope: Scope = SCOPE, grace: float = GRACE) -> list[Leak]:
    """Return what is ours, is there now and was not there `before`; waits up to `grace` seconds for links only."""
    deadline = time.monotonic() + grace
    while True:
        gc.collect()  # what only waits for the collector (grpc's sockets behind an exception) is not left behind
        found = _compare(before, snapshot(), scope)
        if not any(leak.kind == "link" or _may_be_spare(leak) for leak in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _compare(before: Snapshot, after: Snapshot, scope: Scope) -> list[Leak]:
    ours = _our_processes(before, after, scope)
    held = {machine.link(f"/proc/{row.pid}/ns/net") for row in ours}
    found = [Leak("process", row.key, f"{row.name}, parent {row.parent}, state {row.state}") for row in ours]
    for kind, things in after.things.items():
        new = sorted(things.keys() - before.things[kind].keys())
        spares = _spare_sockets(before, new) if kind == "fd" else set()
        found.extend(
            Leak(kind, name, things[name])
            for name in new
            if _is_ours(kind, name, things[name], held, scope) and not scope.is_kept(kind, name) and name not in spares
        )
    return sorted(found, key=lambda leak: (leak.kind, leak.name))


def _our_processes(before: Snapshot, after: Snapshot, scope: Scope) -> list[machine.Process]:
    table = {row.pid: row for row in after.processes.values()}
    new = [after.processes[key] for key in after.processes.keys() - before.processes.keys()]
    ours = [row for row in new if scope.owns_process(row, table) and not scope.is_kept("process", row.key)]
    spares = _spares(before, after)
    return [row for row in ours if row.key not in spares]


def _spare_sockets(before: Snapshot, new: list[str]) -> set[str]:
    """Return those of the new descriptors that lead to spare keepers of spawners that were there before."""
    spawners = {row.pid for row in before.processes.values() if row.name == "crishim-spawner"}
    return set([name for name in new if machine.peer(int(name.partition(" ")[0])) in spawners][:SPARES])


def _spares(before: Snapshot, after: Snapshot) -> set[str]:
    """Return the spare keepers of spawners that were there before, as many as each may have."""
    allowed: set[str] = set()
    for spawner in before.processes.values():
        if spawner.name == "crishim-spawner":
            below = [
                row for row in after.processes.values() if row.parent == spawner.pid and row.name == "crishim-spare"
            ]
            allowed.update(row.key for row in below[:SPARES])
    return allowed


def _may_be_spare(leak: Leak) -> bool:
    return leak.kind in {"process", "netns"} and "crishim-sp" in leak.detail


def _is_ours(kind: str, name: str, detail: str, held: set[str], scope: Scope) -> bool:
    if kind == "fd":
        return True
    if kind == "mount":
        return scope.owns_mount(name, detail)
    if kind == "netns":
        return name in held
    return scope.owns_name(name)


def scrub(leaks: list[Leak], scope: Scope = SCOPE) -> None:
    """Remove what was found, best effort: processes first, then the rest, cgroups from the leaves up.

    Only what carries the run's id is touched, even where everything new is reported: it may be another's after all.
    """
    mine = replace(scope, whole=False)
    table = {row.pid: row for row in machine.processes().values()}
    for leak in leaks:
        row = table.get(int(leak.name.partition("@")[0])) if leak.kind == "process" else None
        if row is not None and row.key == leak.name and mine.owns_process(row, table):
            with contextlib.suppress(ProcessLookupError):
                os.kill(row.pid, signal.SIGKILL)
    for leak in reversed(leaks):
        if leak.kind == "mount":
            if mine.owns_mount(leak.name, leak.detail):
                _run("umount", "-l", leak.name.rpartition(" #")[0])
        elif not mine.owns_name(leak.name):
            continue
        elif leak.kind == "link":
            _run("ip", "link", "del", leak.name)
        elif leak.kind == "nft table":
            _run("nft", "delete", "table", *leak.name.split(" "))
        elif leak.kind == "cgroup":
            with contextlib.suppress(OSError):
                os.rmdir(leak.name)


def _run(*command: str) -> None:
    subprocess.run(command, check=False, capture_output=True)
