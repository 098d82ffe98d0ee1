"""The spawner: a small Python process that does one thing, fork.

It is started by the daemon from a sealed copy of the interpreter, loads the engine's executing half and nothing
else, freezes the garbage collector, and then forks keepers and unpackers on request. It ends at EOF of the daemon's
socket; keepers go on.

```
daemon ── rehearse {pod, container}            ─►  once, before the first fork (`engine.rehearsal`)
       ── spare                                ─►  fork: a keeper without a pod; ◄─ spare + [its control socket]
       ── keeper {plan} + [control]            ─►  fork: a keeper for a pod that no spare one fits, serves `control`
       ── unpacker + [control]                 ─►  fork: an unpacker (`engine.unpacker`), serves `control`
```
Spare keepers wait with everything done that needs no plan (namespaces, sockets, shared memory). The daemon asks for
them ahead of need, talks to them directly, and they end with it.

A fork that fails is reported on the passed socket. Children are reaped by the kernel (SIGCHLD ignored).
"""

import _socket
import gc
import os
import signal
import sys
from typing import Any

from crishim.engine import wire
from crishim.engine.execute.report import describe
from crishim.engine.forked import end_after
from crishim.engine.keeper import births
from crishim.engine.keeper import main as keeper
from crishim.engine.rehearsal import rehearse
from crishim.linux import calls, inheritance
from crishim.linux.cgroups import apply as cgroups


def main(words: list[str]) -> None:
    """Serve the daemon's socket until its end.

    Args:
        words: number of this end of the SOCK_SEQPACKET pair; version of the control groups; how many directories
            there are of the group that the spawner and all keepers live in; these; its directories where systemd looks
            for a unit's processes (`Layout.watched`).
    """
    control_fd, version, count = map(int, words[:3])
    group, watched = words[3 : 3 + count], words[3 + count :]
    os.set_inheritable(control_fd, False)
    control = _socket.socket(fileno=control_fd)
    calls.set_name("crishim-spawner")
    calls.set_title("crishim-spawner")
    calls.prctl(calls.PR_SET_DUMPABLE, 0)
    inheritance.leave_starter()
    births.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cgroups.join_self(group, version)
    cgroups.join_watched(watched)
    imports = Imports()
    imports.forbid()
    gc.disable()
    _freeze()
    Spawner(control, imports).serve()


class Imports:
    """Every import fails while it is forbidden, in all children too, instead of searching a container's image."""

    def __init__(self) -> None:
        self._kept: list[tuple[list[Any], list[Any]]] = [
            (part, list(part)) for part in (sys.meta_path, sys.path, sys.path_hooks)
        ]

    def forbid(self) -> None:
        """Forget where modules are."""
        for part, _ in self._kept:
            part.clear()
        sys.path_importer_cache.clear()

    def allow(self) -> None:
        """Look for modules where they were when this was made."""
        for part, kept in self._kept:
            part[:] = kept


def _freeze() -> None:
    """Keep the collector away from what all children share: it would write to every object."""
    gc.collect()
    gc.freeze()


class Spawner:
    """The daemon's socket.

    Args:
        control: this end.
        imports: which are forbidden.
    """

    def __init__(self, control: _socket.socket, imports: Imports) -> None:
        self._control = control
        self._imports = imports

    def serve(self) -> None:
        """Fork on request until the daemon is gone."""
        try:
            wire.send(self._control, {"event": "ready", "pid": os.getpid()})
            while True:
                message, fds = wire.receive(self._control)
                if message["op"] == "spare":
                    self._offer_spare()
                elif message["op"] == "rehearse":
                    rehearse(message["pod"], message["container"])
                    _freeze()
                else:
                    self._fork(message, fds)
                wire.close_all(fds)
        except wire.ClosedError:
            return

    def _offer_spare(self) -> None:
        """Fork a spare keeper, and hand the daemon the socket through which it gets its pod."""
        ours, theirs = wire.pair()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._control.close()
            ours.close()
            end_after(lambda: keeper.wait_as_spare(theirs), "spare keeper")
        theirs.close()
        # This kernel, or this machine now, cannot have any: pods are forked when asked for
        ready = pid > 0 and bool(ours.recv(16))
        wire.send(self._control, {"event": "spare"}, (ours.fileno(),) if ready else ())
        ours.close()

    def _fork(self, message: wire.Message, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(fds, error)
            return
        if pid:
            return
        self._control.close()
        control = _socket.socket(fileno=fds[0])
        if message["op"] == "unpacker":
            end_after(lambda: self._unpack(control), "unpacker")
        end_after(lambda: keeper.run(message["plan"], control), "keeper")

    def _unpack(self, control: _socket.socket) -> None:
        self._imports.allow()
        from crishim.engine import unpacker

        unpacker.serve(control, self._imports.forbid)


def _refuse(fds: list[int], error: OSError) -> None:
    """Report a failed fork where the child would have reported."""
    sock = _socket.socket(fileno=os.dup(fds[0]))
    wire.send(sock, {"event": "failed", **describe("fork", error)})
    sock.close()
