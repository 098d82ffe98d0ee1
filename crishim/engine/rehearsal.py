"""The spawner's rehearsal: it is a keeper itself for a moment, and starts a container some times, before it forks any.

What the interpreter learns of code that runs (CPython specializes it after eight calls), and what it makes on the first
call, is then in the memory that all keepers are born with, instead of being learnt and copied by each of them. That
works because a container's first process shares its keeper's memory (`linux.vfork`). The last round tells which pages
such a run writes, so that a spare keeper can have its copies of them before its pod comes. Nothing else stays: the
pod's directory and control group are removed, and the signals put back. A rehearsal that fails is only reported.
"""

import _signal  # type: ignore[import-not-found]  # typeshed describes only what wraps it
import os
from collections.abc import Callable
from typing import Any

from crishim.constants import KEEPER_SOCKET
from crishim.engine import smallest, wire
from crishim.engine.keeper import births
from crishim.engine.keeper import pod as pods
from crishim.engine.keeper.main import Keeper
from crishim.linux import pages
from crishim.linux.cgroups import apply as cgroups
from crishim.outlet import complain

ROUNDS = 10
_PATIENCE = 10.0


def rehearse(pod: dict[str, Any], container: dict[str, Any], rounds: int = ROUNDS) -> None:
    """Be the pod's keeper for `rounds` starts of the container (`plan.rehearsal`)."""
    top = os.path.dirname(pod["empty"])
    if _try(lambda: _remove(top, pod["directory"])):  # an earlier spawner may have been killed at it
        _try(lambda: _perform(pod, container, rounds))
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    for plan in (container, pod):
        _try(lambda: cgroups.remove(plan["cgroup"]["directories"]))  # noqa: B023  at once
    _try(lambda: _remove(top, pod["directory"]))


def _try(step: Callable[[], None]) -> bool:
    """Do a step and tell whether it worked: whatever it lacks, pods can be started without it."""
    try:
        step()
    except Exception as error:  # noqa: BLE001  the spawner must go on
        complain(f"crishim spawner: rehearsal: {type(error).__name__}: {error}")
        return False
    return True


def _perform(pod: dict[str, Any], container: dict[str, Any], rounds: int) -> None:
    os.makedirs(pod["empty"])
    _make_root(pod["directory"], container["root"], container["process"]["argv"][0])
    _Driver(pod, container, rounds).run()
    births.expect(_written_by(lambda: _Driver(pod, container, 1).run()))


def _written_by(work: Callable[[], None]) -> pages.Ranges:
    """Return the pages that `work` writes: a child that sleeps meanwhile shares all the others."""
    waiting, told = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(told)
        os.read(waiting, 1)
        os._exit(0)
    try:
        work()
        return pages.written()
    finally:
        os.close(waiting)
        os.close(told)
        os.waitpid(child, 0)


class _Driver:
    """The daemon's part: starts the container, acknowledges its end, starts the next."""

    def __init__(self, pod: dict[str, Any], container: dict[str, Any], rounds: int) -> None:
        pods.complete(pod)
        held = pods.prepare((), pod["shm_size"], pod["directory"])
        for name in ("hosts", "hostname", "resolv.conf"):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=held.files))
        self._keeper = Keeper(held)
        self._keeper.take(pod)
        self._socket = f"{pod['directory']}/{KEEPER_SOCKET}"
        self._left = rounds
        self._container = container
        self._ours, theirs = wire.pair()
        self._ours.setblocking(False)
        self._keeper.loop.add(self._ours.fileno(), self._on_message)
        self._theirs = theirs

    def run(self) -> None:
        """Go through all rounds; ends after `_PATIENCE` seconds at the latest."""
        self._keeper.loop.later(_PATIENCE, self._keeper.loop.stop)
        try:
            self._keeper.serve(self._theirs)
        finally:
            self._keeper.close()
            self._ours.close()
            os.unlink(self._socket)

    def _on_message(self) -> None:
        while True:
            try:
                message, _ = wire.receive(self._ours)
            except (BlockingIOError, wire.ClosedError):
                return
            if "error" in message:
                complain(f"crishim spawner: rehearsal: {message['error']['message']}")
                self._keeper.loop.stop()
            elif message.get("event") == "hello":
                self._next()
            elif message.get("event") == "exit":
                wire.send(self._ours, {"op": "ack", "seq": message["seq"]})
                self._next()

    def _next(self) -> None:
        if self._left:
            self._left -= 1
            wire.send(self._ours, {"n": 1, "op": "start", "plan": self._container})
        else:
            wire.send(self._ours, {"n": 2, "op": "stop"})


def _make_root(directory: str, root: dict[str, Any], program: str) -> None:
    layer = f"{directory}/{root['lower'][0]}"
    for path in ("", "/dev", "/proc", "/sys", "/etc"):
        os.makedirs(layer + path, 0o755, exist_ok=True)
    for path in (root["upper"], root["work"]):
        os.makedirs(path, 0o755, exist_ok=True)
    _write(f"{layer}/etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
    _write(layer + program, smallest.program(), 0o755)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    os.write(fd, data)
    os.close(fd)


def _remove(directory: str, pod: str) -> None:
    """Remove what was made here, and what overlayfs makes of it; absent is fine."""
    if not os.path.isdir(directory):
        return
    pods.unmount(f"{pod}/{pods.PLACE}")  # a spawner that was killed has left it
    for top, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(f"{top}/{name}")
        for name in directories:
            os.rmdir(f"{top}/{name}")
    os.rmdir(directory)
