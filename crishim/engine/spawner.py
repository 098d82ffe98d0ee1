"""The spawner: a small Python process that does one thing, fork.

It is started by the daemon from a sealed copy of the interpreter, loads the engine's executing half and nothing
else, freezes the garbage collector, and then forks keepers and extraction children on request. It ends at EOF of
the daemon's socket; keepers go on.

```
daemon ── rehearse {pod, container}            ─►  once, before the first fork (`engine.rehearsal`)
       ── spare                                ─►  fork: a keeper without a pod; ◄─ spare + [its control socket]
       ── keeper {plan} + [control]            ─►  fork: a keeper for a pod that no spare one fits, serves `control`
       ── extract {options} + [blob, progress, dir, report] ─►  fork: extraction, reports on `report`
```
Spare keepers wait with everything done that needs no plan (namespaces, sockets, shared memory). The daemon asks for
them ahead of need, talks to them directly, and they end with it.

A fork that fails is reported on the passed socket. Children are reaped by the kernel (SIGCHLD ignored).
"""

import _socket
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from crishim.engine import wire
from crishim.engine.execute import decompress, extract
from crishim.engine.execute.report import describe
from crishim.engine.keeper import births
from crishim.engine.keeper import main as keeper
from crishim.engine.rehearsal import rehearse
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups


def load() -> None:
    """Import what children need and this module does not; `main` makes an end of imports."""
    decompress.load()


def main(control_fd: int, group: list[str], version: int) -> None:
    """Serve the daemon's socket until its end.

    Args:
        control_fd: this end of the SOCK_SEQPACKET pair.
        group: directories of the control group that the spawner and all keepers live in.
        version: of the control group layout.
    """
    os.set_inheritable(control_fd, False)
    control = _socket.socket(fileno=control_fd)
    calls.set_name("crishim-spawner")
    calls.set_title("crishim-spawner")
    calls.prctl(calls.PR_SET_DUMPABLE, 0)
    births.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cgroups.join_self(group, version)
    _forget_imports()
    gc.disable()
    _freeze()
    Spawner(control).serve()


def _forget_imports() -> None:
    """Make every later import fail, in all children too, instead of searching a container's image."""
    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def _freeze() -> None:
    """Keep the collector away from what all children share: it would write to every object."""
    gc.collect()
    gc.freeze()


class Spawner:
    """The daemon's socket."""

    def __init__(self, control: _socket.socket) -> None:
        self._control = control

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
            _end_after(lambda: keeper.wait_as_spare(theirs), "spare keeper")
        theirs.close()
        # This kernel, or this machine now, cannot have any: pods are forked when asked for
        ready = pid > 0 and bool(ours.recv(16))
        wire.send(self._control, {"event": "spare"}, (ours.fileno(),) if ready else ())
        ours.close()

    def _fork(self, message: wire.Message, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(message, fds, error)
            return
        if pid:
            return
        self._control.close()
        if message["op"] != "extract":
            _end_after(lambda: keeper.run(message["plan"], _socket.socket(fileno=fds[0])), "keeper")
        _end_after(lambda: extract.run(*fds, options=message["options"]), "extraction")


def _refuse(message: wire.Message, fds: list[int], error: OSError) -> None:
    """Report a failed fork where the child would have reported."""
    if message["op"] != "extract":
        sock = _socket.socket(fileno=os.dup(fds[0]))
        wire.send(sock, {"event": "failed", **describe("fork", error)})
        sock.close()
    else:
        os.write(fds[-1], json.dumps({"error": f"fork: {error}", "kind": "os", "errno": error.errno}).encode() + b"\n")


def _end_after(work: Callable[[], None], what: str) -> NoReturn:
    """Do a child's work and end the process, whatever happens."""
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001  the last place before the process ends
        sys.stderr.write(f"crishim {what} {os.getpid()}: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)
