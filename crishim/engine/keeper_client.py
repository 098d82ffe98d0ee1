"""The daemon's side of one keeper: start containers, exec, signal, reopen logs, hear of exits.

The dialogue is drawn in `engine.keeper.main`. A keeper is known by its pidfd; its death is seen at once, even when
the socket's buffers still hold messages, and after the journal has been read (`on_lost`).
"""

import _socket
import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crishim.codec import to_value
from crishim.engine import wire
from crishim.engine.capture import Capture, Pool
from crishim.engine.channel import Channel
from crishim.engine.plan.types import ExecPlan
from crishim.errors import (
    CrishimError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    UnavailableError,
)
from crishim.linux.processes import start_time
from crishim.log import get_logger
from crishim.request import ResolvedUser

log = get_logger("crishim.engine")

START_DEADLINE = 120.0
CALL_DEADLINE = 30.0
END_DEADLINE = 5.0
"""For what is asked of a keeper to end something; one that is silent for so long is ended itself (`give_up`)."""
_EXEC_END = 10.0
_DEATH_DEADLINE = 10.0
_PEER = struct.Struct("iII")  # struct ucred


class StartError(FailedPreconditionError):
    """A container or exec could not be started: which step failed, with errno and the path concerned.

    `inside`: an exec's process was in the container already, and could not become its program.
    """

    def __init__(self, step: str, errno: int, path: str, message: str, *, inside: bool = False) -> None:
        super().__init__(f"{step}: {message}" if not message.startswith(step) else message)
        self.step = step
        self.errno = errno
        self.path = path
        self.inside = inside


@dataclass(frozen=True, slots=True)
class Started:
    """What is known of a container that runs its program; times in ns since the epoch, ticks since boot."""

    pid: int
    start_time: int
    started_at: int
    user: ResolvedUser | None


@dataclass(frozen=True, slots=True)
class Exit:
    """One journal entry: a container has ended with `exit_code` (status, or 128 + signal)."""

    seq: int
    container_id: str
    exit_code: int
    oom_killed: bool
    finished_at: int


class Keeper:
    """One pod's keeper.

    Attributes:
        running: containers that run, by id, as the keeper said when it was met.
        exits: journal entries that it had when it was met.
        files_fd, netns_fd, netlink_fd: handed over once, by a keeper that was just started, else -1; the owner closes
            them.
        on_exit: gets each further Exit.
        on_lost: called once when the keeper is gone without having been told to stop.
    """

    def __init__(self, pod_id: str, sock: _socket.socket) -> None:
        self.pod_id = pod_id
        self.pid = 0
        self.pidfd = -1
        self.start_time = 0
        self.version = 0
        self.files_fd = -1
        self.netns_fd = -1
        self.netlink_fd = -1
        self.running: dict[str, Started] = {}
        self.exits: list[Exit] = []
        self.on_exit: Callable[[Exit], object] | None = None
        self.on_lost: Callable[[], object] | None = None
        self._stopped = False
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._execs: dict[int, asyncio.Future[int]] = {}
        self._next_exec = 1
        self._gone = asyncio.Event()
        self._channel = Channel(sock, f"keeper of pod {pod_id[:13]}", self._on_event, self._on_close)

    def be(self, plan: dict[str, Any]) -> None:
        """Tell a spare keeper whose it is; UnavailableError if it is gone."""
        self._channel.send({"plan": plan})

    async def greeted(self, deadline: float) -> None:
        """Wait for the keeper's hello.

        Raises:
            StartError: its set-up failed, and why.
            UnavailableError, DeadlineExceededError: it is gone or silent.
        """
        try:
            async with asyncio.timeout(deadline):
                await self._greeted
        except TimeoutError:
            raise DeadlineExceededError(f"the keeper of pod {self.pod_id[:13]} does not answer") from None

    async def start_container(self, plan: bytes) -> Started:
        """Start a container by its frozen plan (`codec.frozen`); return when it runs its program.

        Raises:
            StartError: which step failed.
        """
        answer = await self._call({"op": "start"}, plan=plan, deadline=START_DEADLINE)
        return _started(answer["started"])

    async def signal(self, container_id: str, signum: int) -> None:
        """Signal the container's first process; one that has ended is fine."""
        await self._call({"op": "signal", "container": container_id, "signal": signum}, deadline=END_DEADLINE)

    async def kill(self, container_id: str) -> None:
        """SIGKILL everything in the container's control group."""
        await self._call({"op": "kill", "container": container_id}, deadline=END_DEADLINE)

    async def reopen_log(self, container_id: str) -> None:
        """Open the log file anew; returns when the new file exists."""
        await self._call({"op": "reopen", "container": container_id})

    async def ack(self, seq: int) -> None:
        """Let the keeper drop its journal entries up to `seq`: they are in the store."""
        with contextlib.suppress(UnavailableError):
            self._channel.send({"op": "ack", "seq": seq})

    async def exec_sync(
        self,
        container_id: str,
        plan: ExecPlan,
        timeout: float,  # noqa: ASYNC109  the CRI's own argument
        limit: int,
        pool: Pool | None = None,
    ) -> tuple[bytes, bytes, int]:
        """Run a process in a container; return stdout, stderr and the exit code.

        Args:
            container_id: a container that runs.
            plan: what to run.
            timeout: seconds, 0 for none; then the process's tree is killed, as it is when the caller goes.
            limit: bytes that are kept of both streams together; the rest is read and dropped.
            pool: what is kept by all calls together comes from here.

        Raises:
            StartError: which step failed.
            DeadlineExceededError: the timeout has passed.
        """
        number = self._next_exec
        self._next_exec += 1
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._execs[number] = ended
        capture = Capture(limit, pool)
        try:
            async with asyncio.timeout(timeout or None):
                fds = capture.open()
                try:
                    request = {"op": "exec", "exec": number, "plan": to_value(plan, full=True)}
                    await self._call(request, fds, deadline=START_DEADLINE)
                finally:
                    wire.close_all(fds)
                status = await asyncio.shield(ended)
            capture.finish()
            return *capture.output(), status
        except TimeoutError:
            await self._kill_exec(number, ended)
            raise DeadlineExceededError(
                f"command {' '.join(plan.process.argv)!r} in container {container_id[:13]} "
                f"did not end within {timeout:g} s"
            ) from None
        except asyncio.CancelledError:
            await self._kill_exec(number, ended)
            raise
        finally:
            self._execs.pop(number, None)
            capture.close()

    async def stop(self) -> None:
        """Tell the keeper to kill what runs and to leave; a dead one is fine.

        When it has answered nothing of the pod runs any more; the process itself ends by itself a moment later. One
        that does not answer is killed, and waited for.
        """
        self._stopped = True
        with contextlib.suppress(UnavailableError, DeadlineExceededError):
            await self._channel.request({"op": "stop"}, timeout=END_DEADLINE)
            return
        self.kill_keeper()
        with contextlib.suppress(TimeoutError):  # one in an uninterruptible wait does not end; its removal says so
            async with asyncio.timeout(_DEATH_DEADLINE):
                await self._gone.wait()

    def give_up(self) -> None:
        """SIGKILL a keeper that does not answer, and count it as lost from now on, even if it does not end."""
        if self._channel.open:
            log.error("a keeper that does not answer is killed", pod=self.pod_id)
            self.kill_keeper()
            self._channel.close()

    def kill_keeper(self) -> None:
        """SIGKILL the keeper itself if it is still there (after a stop it is on its way out)."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def detach(self) -> None:
        """Let go of the keeper without ending it: the daemon leaves, containers go on."""
        self._stopped = True
        self._channel.close()
        self._release()

    @property
    def alive(self) -> bool:
        """Whether the keeper can be talked to."""
        return self._channel.open

    async def _call(
        self,
        message: wire.Message,
        fds: tuple[int, ...] | list[int] = (),
        *,
        plan: bytes = b"",
        deadline: float = CALL_DEADLINE,
    ) -> wire.Message:
        answer = await self._channel.request(message, fds, timeout=deadline, plan=plan)
        if "error" in answer:
            raise start_error(answer["error"])
        return answer

    async def _kill_exec(self, number: int, ended: "asyncio.Future[int]") -> None:
        """Kill an exec's tree and wait for its end, even if the caller is cancelled meanwhile."""
        with contextlib.suppress(UnavailableError, DeadlineExceededError, StartError, TimeoutError):
            answer = await asyncio.shield(self._call({"op": "exec_kill", "exec": number}, deadline=END_DEADLINE))
            if answer.get("found", True):
                async with asyncio.timeout(_EXEC_END):
                    await asyncio.shield(ended)

    def _on_event(self, message: wire.Message, fds: list[int]) -> None:
        event = message.get("event")
        if event == "hello":
            self._on_hello(message, fds)
            return
        wire.close_all(fds)
        if event == "exit":
            self._on_exit(_exit(message))
        elif event == "exec_exit":
            future = self._execs.get(message["exec"])
            if future is not None and not future.done():
                future.set_result(message["status"])
        elif event == "failed" and not self._greeted.done():
            self._stopped = True
            self._refuse(start_error(message["error"]))

    def _on_exit(self, ended: Exit) -> None:
        """Pass an exit on; one that comes before anyone listens is found in `exits`."""
        if self.on_exit is None:
            self.exits.append(ended)
        else:
            self.on_exit(ended)

    def _on_hello(self, message: wire.Message, fds: list[int]) -> None:
        version = message["version"]
        if not wire.OLDEST_VERSION <= version <= wire.PROTOCOL_VERSION:
            wire.close_all(fds)
            self._refuse(
                InternalError(
                    f"the keeper of pod {self.pod_id[:13]} speaks protocol {version}, which is not known here"
                )
            )
            return
        self.version = version
        self.pid = message["pid"]
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has just died: what ends with its socket ends now
            wire.close_all(fds)
            self._channel.close()
            return
        self.start_time = start_time(self.pid)
        asyncio.get_running_loop().add_reader(self.pidfd, self._on_death)
        if fds:
            self.files_fd, self.netns_fd, self.netlink_fd = (*fds, -1, -1)[:3]
        self.running = {c["id"]: _started(c) for c in message["containers"]}
        self.exits = [_exit(entry) for entry in message["exits"]]
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _refuse(self, error: CrishimError) -> None:
        """Let whoever waits for the hello have this error; nobody may."""
        self._greeted.set_exception(error)
        self._greeted.exception()  # asyncio would report it as never retrieved

    def _on_death(self) -> None:
        """The keeper's process has ended; if the daemon is its nearest subreaper, it is reaped here."""
        _reap(self.pidfd)
        self._release()
        self._channel.close()

    def _release(self) -> None:
        if self.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        self._gone.set()

    def _on_close(self) -> None:
        if not self._greeted.done():
            self._refuse(UnavailableError(f"the keeper of pod {self.pod_id[:13]} ended unexpectedly"))
            self._gone.set()
        for future in self._execs.values():
            if not future.done():
                future.set_result(137)
        if self.pidfd < 0:
            self._gone.set()
        if not self._stopped and self.on_lost is not None:
            self.on_lost()


def pidfd_of_peer(sock: _socket.socket, pod_id: str) -> int:
    """Return a pidfd of the keeper that listens at the other end of a connection, or -1; the caller closes it.

    The kernel names who called listen(2) (SO_PEERCRED, unix(7)). His number may be another's by now, so the title
    that the pod's keeper has must be that process'.
    """
    try:
        pid, _, _ = _PEER.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER.size))
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read()
    except OSError:
        title = b""
    if title.rstrip(b"\0") != f"crishim-keeper {pod_id}".encode():
        os.close(fd)
        return -1
    return fd


async def end_silent(pidfd: int, pod_id: str, reason: str) -> None:
    """SIGKILL a keeper that cannot be talked to, and wait for its end; -1 and one that has ended are fine."""
    if pidfd < 0:
        return
    log.error("a keeper that cannot be talked to is killed", pod=pod_id, reason=reason)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:  # one in an uninterruptible wait does not end; the removal of the pod says what resists
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_DEADLINE):
                await ended.wait()
    finally:
        loop.remove_reader(pidfd)
    _reap(pidfd)


def _reap(pidfd: int) -> None:
    """Reap a process that has ended; one that is no child of this process is its parent's business."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def start_error(fields: dict[str, Any]) -> StartError:
    """Return the error that a keeper or its child reported."""
    return StartError(
        fields["step"], fields["errno"], fields["path"], fields["message"], inside=fields.get("inside", False)
    )


def _started(fields: dict[str, Any]) -> Started:
    user = fields["user"]
    resolved = ResolvedUser(user[0], user[1], tuple(user[2])) if user else None
    return Started(fields["pid"], fields["start_time"], fields["started_at"], resolved)


def _exit(fields: dict[str, Any]) -> Exit:
    return Exit(fields["seq"], fields["container"], fields["status"], fields["oom_kills"] > 0, fields["finished_at"])


def journalled(entries: list[dict[str, Any]]) -> list[Exit]:
    """Return the exits in a journal whose keeper is gone."""
    return [_exit(entry) for entry in entries]
