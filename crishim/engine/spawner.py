"""The spawner: a small Python process that does one thing, fork.

It is started by the daemon from a sealed copy of the interpreter, loads the engine's executing half and nothing
else, freezes the garbage collector, and then forks keepers and extraction children on request. It ends at EOF of
the daemon's socket; keepers go on.

```
daemon ── keeper {plan} + [control]            ─►  fork: keeper serves `control`
       ── extract {options} + [tar, dir, report] ─►  fork: extraction, reports on `report`
```
A fork that fails is reported on the passed socket. Children are reaped by the kernel (SIGCHLD ignored).
"""

import _socket
import gc
import json
import os
import signal
import sys
from typing import NoReturn

from crishim.engine import wire
from crishim.engine.execute import extract
from crishim.engine.execute.report import describe
from crishim.engine.keeper import main as keeper
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups


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
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cgroups.join_self(group, version)
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        wire.send(control, {"event": "ready", "pid": os.getpid()})
        while True:
            message, fds = wire.receive(control)
            _fork(message, fds, control)
            wire.close_all(fds)
    except wire.ClosedError:
        return


def _fork(message: wire.Message, fds: list[int], control: _socket.socket) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        _refuse(message, fds, error)
        return
    if pid == 0:
        control.close()
        _child(message, fds)


def _refuse(message: wire.Message, fds: list[int], error: OSError) -> None:
    """Report a failed fork where the child would have reported."""
    if message["op"] == "keeper":
        sock = _socket.socket(fileno=os.dup(fds[0]))
        wire.send(sock, {"event": "failed", **describe("fork", error)})
        sock.close()
    else:
        os.write(fds[2], json.dumps({"error": f"fork: {error}", "kind": "os", "errno": error.errno}).encode() + b"\n")


def _child(message: wire.Message, fds: list[int]) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if message["op"] == "keeper":
            keeper.run(message["plan"], _socket.socket(fileno=fds[0]))
        else:
            extract.run(fds[0], fds[1], fds[2], message["options"])
        status = 0
    except BaseException as error:  # noqa: BLE001  the last place before the process ends
        sys.stderr.write(f"crishim {message['op']} {os.getpid()}: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)
