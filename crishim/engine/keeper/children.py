"""The keeper's children: containers' first processes, execs, the pod's own process 1; who they are and how they end.

One place forks and one place reaps. A child that sets itself up talks through its `Setup` socket until it execs
(see `execute.report`). Ends are collected after SIGCHLD by waitid(2); what no one knows (an orphan that fell to the
keeper as the nearest subreaper) is just reaped.
"""

import _socket
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from crishim.engine import wire
from crishim.engine.keeper.loop import Loop, guard
from crishim.linux import calls
from crishim.linux.processes import FLAGS, START_TIME, stat_fields

_PF_EXITING = 0x4  # linux/sched.h
_PF_FORKNOEXEC = 0x40  # forked but did not exec
_PAUSE = 0.0002
_LOOKS = 5000


class Child:
    """A running process of ours; `ended(status)` is called once with 0-255, or 128+signal.

    `start_time` (clock ticks since boot) and `ran` (it has exec'd) are known after `inspect`, which must come while
    the process is there, be it as a zombie. `settle`, where it is set, must be called before the process counts as
    ended: another one may have gone on in its place, and then `moved` is called, where it is set. One that is `exposed`
    has the keeper's rights in a PID namespace of containers until it has settled.
    """

    __slots__ = ("ended", "exposed", "inspected", "moved", "pid", "pidfd", "ran", "settle", "start_time")

    def __init__(self, pid: int, pidfd: int, ended: Callable[[int], None]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.ended = ended
        self.exposed = False
        self.inspected = False
        self.start_time = 0
        self.ran = False
        self.settle: Callable[[], None] | None = None
        self.moved: Callable[[], None] | None = None

    def inspect(self) -> None:
        """Read what tells a program that ran from a copy of the keeper that never got so far (proc_pid_stat(5)).

        An exec wakes the parent of a vfork when it lets the old memory go, a moment before the kernel counts the
        process as one that has exec'd (`begin_new_exec` in fs/exec.c): one that is between the two is looked at again.
        """
        if self.inspected:
            return
        self.inspected = True
        fields = stat_fields(self.pid)
        for _ in range(_LOOKS):
            if int(fields[FLAGS]) & (_PF_FORKNOEXEC | _PF_EXITING) != _PF_FORKNOEXEC:
                break
            time.sleep(_PAUSE)
            fields = stat_fields(self.pid)
        self.ran = not int(fields[FLAGS]) & _PF_FORKNOEXEC
        self.start_time = int(fields[START_TIME])


class Children:
    """All children by pid."""

    def __init__(self, loop: Loop) -> None:
        self._known: dict[int, Child] = {}
        loop.watch_children(self.reap)

    def add(self, pid: int, pidfd: int, ended: Callable[[int], None]) -> Child:
        """Watch over a child that was just forked."""
        child = Child(pid, pidfd, ended)
        self._known[pid] = child
        return child

    def move(self, child: Child, pid: object) -> None:
        """Take another child of the keeper's as the one that is watched; the first one's end means nothing then.

        Whoever may trace a child can send what he likes in its place: a stranger's pid is passed over.
        """
        if not isinstance(pid, int) or pid in self._known or not _is_child(pid):
            return
        self._known.pop(child.pid, None)
        os.close(child.pidfd)
        child.pid = pid
        child.pidfd = os.pidfd_open(pid)
        self._known[pid] = child
        moved, child.settle, child.moved = child.moved, None, None
        if moved is not None:
            moved()

    def exposed(self) -> bool:
        """Tell whether there is a process that one in its PID namespace must not be able to look into."""
        return any(child.exposed and child.settle is not None for child in self._known.values())

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if result is None:
                return
            for settle in [child.settle for child in self._known.values() if child.settle is not None]:
                guard(settle)
            child = self._known.pop(result.si_pid, None)
            if child is not None:
                child.inspect()
            os.waitid(os.P_PID, result.si_pid, os.WEXITED)
            if child is None:
                continue
            os.close(child.pidfd)
            child.pidfd = -1
            status = result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status
            # Child and owner hold each other, and the keeper has no garbage collector running: let go of one end
            ended, child.ended = child.ended, _ended_before
            guard(lambda ended=ended, status=status: ended(status))  # type: ignore[misc]


def _is_child(pid: int) -> bool:
    """Tell whether this is a child of the keeper's, ended or not (waitid(2))."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, OverflowError, OSError):
        return False
    return pid > 0


def _ended_before(_status: int) -> None:
    """Stand in the place of a callback that was called."""


class Setup:
    """The keeper's end of a child's report: collects what it says, and calls `done` at exec or failure.

    `error` is the failed step's fields or None; `user` the ids; `terminal` the master's fd or -1 (the receiver owns
    it). `moved` gets the pid of a process that goes on in the child's place (`process.step_inside`).
    """

    __slots__ = ("_done", "_loop", "_moved", "_open", "_sock", "error", "terminal", "user")

    def __init__(
        self,
        loop: Loop,
        sock: _socket.socket,
        done: Callable[["Setup"], None],
        moved: Callable[[object], None] | None = None,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._done = done
        self._moved = moved
        self._open = True
        self.error: dict[str, Any] | None = None
        self.user: list[Any] | None = None
        self.terminal = -1
        sock.setblocking(False)
        loop.add(sock.fileno(), self.collect)

    def collect(self) -> None:
        """Take what the child has said so far."""
        while self._open:
            try:
                data, fds = wire.receive_packet(self._sock)
            except BlockingIOError:
                return
            except wire.ClosedError:
                break
            message = _words(data)
            self.error = message.get("error", self.error)
            self.user = message.get("user", self.user)
            if fds and self.terminal < 0:
                self.terminal = fds.pop(0)
            wire.close_all(fds)
            if "pid" in message and self._moved is not None:
                self._moved(message["pid"])
        if not self._open:
            return
        self._open = False
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        self._done(self)


def _words(data: bytes) -> dict[str, Any]:
    """Return the words of a packet, none where it is not of a child's: whoever may trace one could have sent it."""
    try:
        words = wire.decode(data, [])
    except (ValueError, IndexError):
        return {}
    return words if isinstance(words, dict) else {}


def watch_set_up(
    loop: Loop,
    children: Children,
    child: Child,
    sock: _socket.socket,
    done: Callable[[Setup], None],
    *,
    screened: bool,
) -> None:
    """Follow a child's report to its exec or failure, be it one process or, where it is `screened`, a second."""

    def finished(setup: Setup) -> None:
        child.settle = child.moved = None
        done(setup)

    child.exposed = not screened
    child.settle = Setup(loop, sock, finished, lambda pid: children.move(child, pid)).collect


def send_signal(pidfd: int, number: int) -> bool:
    """Send a signal by pidfd (pidfd_send_signal(2)); False if the process has ended (its pidfd is -1 then)."""
    if pidfd < 0:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def join_pid_namespace(pidfd: int) -> int:
    """Let the next child be born in the PID namespace of `pidfd`'s process; return an fd to `leave_pid_namespace`."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(pidfd, calls.CLONE_NEWPID, "the container's PID namespace")
    except OSError:
        os.close(own)
        raise
    return own


def leave_pid_namespace(own: int) -> None:
    """Have children in the keeper's own PID namespace again."""
    calls.setns(own, calls.CLONE_NEWPID, "the keeper's PID namespace")
    os.close(own)
