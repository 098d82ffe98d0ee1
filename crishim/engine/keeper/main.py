"""The keeper: one small process per pod that outlives the daemon.

```
daemon                                keeper
  │ hello {pod}                 ─────►  │   (the first connection: a socket pair, greeted unasked)
  │ ◄──── hello {version, pid, containers, exits}
  │ start {plan} ───────────────────►   │  ◄── answer {started | error}
  │ exec {exec, plan} + 3 fds ──────►   │  ◄── answer {pid | error},  later event exec_exit {exec, status}
  │ signal, kill, exec_kill, reopen ►   │  ◄── answer {}
  │ ◄──── event exit {seq, container, status, oom_kills, finished_at}
  │ ack {seq} ──────────────────────►   │  (drops the journal entry; no answer)
  │ stop ───────────────────────────►   │  kills what runs, answers, ends
```
Several connections may exist (an old daemon's that is not closed yet, a new one's); exits go to all of them. A
request that fails is answered with `error`, never ends the keeper.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps in enums, which cost many page copies
import _socket
import errno
import os
from typing import Any

from crishim.constants import KEEPER_SOCKET, SHM_SIZE
from crishim.engine import spare, wire
from crishim.engine.execute.report import StepError, describe
from crishim.engine.keeper import births
from crishim.engine.keeper import pod as pods
from crishim.engine.keeper.children import Children
from crishim.engine.keeper.connection import Connection
from crishim.engine.keeper.containers import Containers
from crishim.engine.keeper.execs import Execs
from crishim.engine.keeper.journal import Journal
from crishim.engine.keeper.loop import Loop
from crishim.linux import calls

JOURNAL = "journal"
_STOP_PATIENCE = 10.0


def run(plan: dict[str, Any], control: _socket.socket) -> None:
    """Be a pod's keeper until told to stop; `control` is the daemon's first connection."""
    set_up_process()
    try:
        pod = pods.prepare(tuple(plan["namespaces"]), plan["shm_size"], plan["directory"])
    except OSError as error:
        wire.send(control, {"event": "failed", **describe("pod", error)})
        return
    _serve(plan, control, Keeper(pod))


def wait_as_spare(control: _socket.socket) -> None:
    """Be a keeper without a pod: everything that needs no plan is done, then the plan is waited for.

    The other end of `control` is first the spawner's, which hears that the spare is ready, then the daemon's. It ends
    when that does. A kernel that cannot clone a detached mount needs the pod's directory first, so there a spare is of
    no use, and it says so by ending.
    """
    calls.set_name("crishim-spare")
    calls.set_title("crishim-keeper (spare)")
    set_up_process()
    pod = pods.prepare(spare.NAMESPACES, SHM_SIZE, "")
    if not pods.can_clone(pod.tree):
        return
    keeper = Keeper(pod)
    try:
        control.send(b"ready")
        births.ready()
        message, _ = wire.receive(control)
    except (wire.ClosedError, BrokenPipeError):
        return
    _serve(message["plan"], control, keeper)


def set_up_process() -> None:
    """Take on a keeper's properties: own session, subreaper, nothing can look into it, quiet signals."""
    os.setsid()
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
    calls.prctl(calls.PR_SET_DUMPABLE, 0)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_IGN)


def _serve(plan: dict[str, Any], control: _socket.socket, keeper: "Keeper") -> None:
    calls.set_name(f"crishim-{plan['pod_id'][:7]}")
    calls.set_title(f"crishim-keeper {plan['pod_id']}")
    try:
        pods.complete(plan)
        keeper.take(plan)
    except (OSError, StepError) as error:
        wire.send(control, {"event": "failed", **describe("pod", error)})
        return
    keeper.serve(control)


class Keeper:
    """Serves connections and owns the pod's containers, in its `loop`."""

    def __init__(self, pod: pods.Pod) -> None:
        self._pod_id = ""
        self._pod = pod
        self.loop = Loop()
        self._journal: Journal
        children = Children(self.loop)
        self._containers = Containers(self.loop, children, pod.tree, self._on_exit, self._leave)
        self._execs = Execs(self.loop, children, self._containers)
        self._connections: list[Connection] = []
        self._stopping: list[tuple[Connection, wire.Message]] = []
        self._listener: _socket.socket

    def take(self, plan: dict[str, Any]) -> None:
        """Be this pod's."""
        self._pod_id = plan["pod_id"]
        self._containers.place = plan["empty"]
        self._journal = Journal(f"{plan['directory']}/{JOURNAL}")
        self._listener = wire.listen(plan["directory"], KEEPER_SOCKET)
        self._listener.setblocking(False)
        self.loop.add(self._listener.fileno(), self._accept)

    def serve(self, control: _socket.socket) -> None:
        """Greet the first connection and run."""
        connection = self._connect(control)
        self._greet(connection, fds=tuple(self._pod.hand_over()))
        self._pod.let_go()
        self.loop.run()

    def close(self) -> None:
        """Let go of all it holds, where the process goes on."""
        for connection in list(self._connections):
            connection.close()
        self.loop.remove(self._listener.fileno())
        self._listener.close()
        self._journal.close()
        self._pod.close()
        self.loop.close()

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001  the C socket returns the bare fd
        except BlockingIOError:
            return
        os.set_inheritable(fd, False)
        self._greet(self._connect(_socket.socket(fileno=fd)))

    def _connect(self, sock: _socket.socket) -> Connection:
        connection = Connection(self.loop, sock, self._on_message, self._on_close)
        self._connections.append(connection)
        return connection

    def _greet(self, connection: Connection, fds: tuple[int, ...] = ()) -> None:
        hello = {
            "event": "hello",
            "version": wire.PROTOCOL_VERSION,
            "pod": self._pod_id,
            "pid": os.getpid(),
            "containers": self._containers.describe(),
            "exits": self._journal.pending(),
        }
        connection.send(hello, fds)

    def _on_close(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._execs.connection_closed(connection)

    def _on_message(self, connection: Connection, message: wire.Message, fds: list[int]) -> None:
        handler = _HANDLERS.get(message.get("op", ""))
        try:
            if handler is None:
                connection.answer(message, error=_unknown(message))
            else:
                handler(self, connection, message, fds)
        except Exception as error:  # noqa: BLE001  whatever a request does wrong, the keeper serves on
            connection.answer(message, **describe(str(message.get("op")), error))
        finally:
            wire.close_all(fds)

    def _start(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        self._containers.start(message["plan"], lambda **fields: connection.answer(message, **fields))

    def _exec(self, connection: Connection, message: wire.Message, fds: list[int]) -> None:
        self._execs.start(connection, message, fds)

    def _exec_kill(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        connection.answer(message, found=self._execs.kill(connection, message["exec"]))

    def _signal(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        connection.answer(message, sent=self._containers.signal(message["container"], message["signal"]))

    def _kill(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        self._containers.kill(message["container"])
        connection.answer(message)

    def _reopen(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        container = self._containers.running(message["container"])
        if container is None:
            raise ProcessLookupError(errno.ESRCH, "the container does not run")
        container.log.reopen()
        connection.answer(message)

    def _ack(self, _connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        self._journal.acknowledge(message["seq"])

    def _stop(self, connection: Connection, message: wire.Message, _fds: list[int]) -> None:
        """End when no container is left; what still runs is killed."""
        for container_id in list(self._containers.by_id):
            self._containers.kill(container_id)
        self._stopping.append((connection, message))
        self.loop.later(_STOP_PATIENCE, self.loop.stop)
        self._leave()

    def _leave(self) -> None:
        if not self._stopping or self._containers.by_id:
            return
        for connection, message in self._stopping:
            connection.answer(message)
        self.loop.stop()

    def _on_exit(self, entry: dict[str, Any]) -> None:
        numbered = self._journal.add(entry)
        for connection in list(self._connections):
            connection.send({"event": "exit", **numbered})


_HANDLERS = {
    "start": Keeper._start,  # noqa: SLF001  the table of the class's own requests
    "exec": Keeper._exec,  # noqa: SLF001
    "exec_kill": Keeper._exec_kill,  # noqa: SLF001
    "signal": Keeper._signal,  # noqa: SLF001
    "kill": Keeper._kill,  # noqa: SLF001
    "reopen": Keeper._reopen,  # noqa: SLF001
    "ack": Keeper._ack,  # noqa: SLF001
    "stop": Keeper._stop,  # noqa: SLF001
}


def _unknown(message: wire.Message) -> dict[str, Any]:
    return {"step": "keeper", "errno": 0, "path": "", "message": f"unknown request {message.get('op')!r}"}
