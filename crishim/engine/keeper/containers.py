"""The containers of a pod: started from their plans, watched, ended; each end becomes a journal entry.

Order at an end: execs have reported → the control group is killed (a container that is not process 1 of its own
PID namespace may leave others behind) → the OOM counter is read, before the group goes → the log is drained and its
tail written → the entry is journalled and sent → the group is removed.
"""

import binascii
import errno
import os
import time
from collections.abc import Callable
from typing import Any

from crishim.engine import wire
from crishim.engine.execute.report import describe
from crishim.engine.keeper import births, reaper
from crishim.engine.keeper.children import (
    Child,
    Children,
    Setup,
    join_pid_namespace,
    leave_pid_namespace,
    send_signal,
    watch_set_up,
)
from crishim.engine.keeper.logs import LogFile, Stream
from crishim.engine.keeper.loop import Loop
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.cgroups import bpf

_REMOVE_AGAIN = 0.05
_EXECS_PATIENCE = 1.0
_SETTLE_AGAIN = 0.002
_KILLED = 128 + 9
OUT_OF_MEMORY = "the memory limit of the container or its pod leaves too little for it"
_SYS_PTRACE = 19


class Container:
    """One container that was started here."""

    __slots__ = (
        "cgroup_namespace",
        "child",
        "execs",
        "group",
        "id",
        "log",
        "own_pid",
        "silent",
        "started_at",
        "state",
        "status",
        "stdin",
        "streams",
        "terminal",
        "traces",
        "user",
    )

    def __init__(self, plan: dict[str, Any], log: LogFile) -> None:
        self.id: str = plan["container_id"]
        self.group: dict[str, Any] = plan["cgroup"]
        self.own_pid: bool = plan["pid"] == "new"
        self.cgroup_namespace: bool = plan["cgroup_namespace"]
        self.traces = _traces(plan)
        self.log = log
        self.child: Child
        self.streams: list[Stream] = []
        self.stdin = -1
        self.terminal = -1
        self.execs = 0
        self.state = "starting"
        self.status = 0
        self.started_at = 0
        self.user: list[Any] | None = None
        self.silent: Callable[[], None] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the daemon keeps of a running container; times in ns since the epoch and ticks since boot."""
        return {
            "id": self.id,
            "pid": self.child.pid,
            "start_time": self.child.start_time,
            "started_at": self.started_at,
            "user": self.user,
        }


Answer = Callable[..., None]


class Containers:
    """Starts, signals and ends containers.

    `place` is an empty directory on which roots are attached. `on_exit` gets the fields of each end's journal entry;
    `on_gone` is called when one is let go of, ran it or not.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        pod: int | str,
        on_exit: Callable[[dict[str, Any]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._pod = pod
        self.place = ""
        self._on_exit = on_exit
        self._reaper: Child | None = None
        self._on_gone = on_gone
        self._tracers_waiting = 0
        self.by_id: dict[str, Container] = {}

    def start(self, plan: dict[str, Any], answer: Answer) -> None:
        """Start a container; `answer(started=…)` or `answer(error=…)` follows when it runs its program or failed.

        One that may look into others waits for those that are being set up where it will see them.
        """
        if _traces(plan) and plan["pid"] not in {"new", "host"} and self._children.exposed():
            self._tracers_waiting += 1
            self._loop.later(_SETTLE_AGAIN, lambda: self._start_again(plan, answer))
            return
        container = Container(plan, LogFile(plan["stdio"]["log_path"]))
        group = container.group
        try:
            cgroups.make(group["directories"])
            cgroups.write_all((w["directory"], w["file"], w["value"]) for w in group["writes"])
            _attach_device_program(group)
            birth = self._bear(plan, container)
        except BaseException:
            self._discard(container)
            raise
        self.by_id[container.id] = container
        if birth.sock is not None:
            watch_set_up(
                self._loop,
                self._children,
                container.child,
                birth.sock,
                lambda setup: self._copied(container, setup, answer),
                screened=birth.screened,
            )
        elif birth.report is not None:
            self._set_up(container, birth.report.error, birth.report.ids, answer)

    def _start_again(self, plan: dict[str, Any], answer: Answer) -> None:
        self._tracers_waiting -= 1
        try:
            self.start(plan, answer)
        except Exception as error:  # noqa: BLE001  as for a request that is served at once
            answer(**describe("start", error))

    def signal(self, container_id: str, number: int) -> bool:
        """Signal the first process; False if the container has ended."""
        container = self.by_id.get(container_id)
        return container is not None and send_signal(container.child.pidfd, number)

    def kill(self, container_id: str) -> None:
        """SIGKILL everything in the container's control group."""
        container = self.by_id.get(container_id)
        if container is not None:
            self._kill(container)

    def running(self, container_id: str) -> Container | None:
        """Return a container whose program runs."""
        container = self.by_id.get(container_id)
        return container if container is not None and container.state == "running" else None

    def exec_ended(self, container: Container) -> None:
        """Count one exec less; a container that waits for its last exec ends now."""
        container.execs -= 1
        if container.execs == 0 and container.state == "ending":
            self._finish(container)

    def watched(self) -> bool:
        """Tell whether a container here, or one that is about to be, may look into others by CAP_SYS_PTRACE."""
        return self._tracers_waiting > 0 or any(container.traces for container in self.by_id.values())

    def describe(self) -> list[dict[str, Any]]:
        """Return what a new daemon must know of each container that runs."""
        return [c.describe() for c in self.by_id.values() if c.state == "running"]

    def _bear(self, plan: dict[str, Any], container: Container) -> births.Birth:
        """Make the first process, and take the keeper's ends of its stdio."""
        inner, outer = self._stdio(plan["stdio"])
        try:
            birth = self._birth(plan, container, (inner[0], inner[1], inner[2]))
        except BaseException:
            wire.close_all([fd for _, fd in outer])
            raise
        finally:
            wire.close_all([fd for fd in inner if fd >= 0])
        container.child = self._children.add(birth.pid, birth.pidfd, lambda status: self._ended(container, status))
        for name, fd in outer:
            if name == "stdin":
                container.stdin = fd
            else:
                container.streams.append(Stream(self._loop, fd, name, container.log))
        return birth

    def _birth(self, plan: dict[str, Any], container: Container, stdio: tuple[int, int, int]) -> births.Birth:
        mode = plan["pid"]
        if mode == "new" and births.can_share(plan):
            return births.share(plan, calls.CLONE_NEWNS | calls.CLONE_NEWPID, stdio, self._pod, self.place)
        namespace = screen = born_in = -1
        flags = calls.CLONE_NEWNS
        try:
            if mode == "new":
                flags |= calls.CLONE_NEWPID
            elif mode != "host" and self.watched():
                screen = self._pid_target(mode)
            elif mode != "host":
                namespace = join_pid_namespace(self._pid_target(mode))
            born_in = unified(container.group)
            return births.copy(plan, flags, stdio, self._pod, self.place, born_in=born_in, screen=screen)
        finally:
            if namespace >= 0:
                leave_pid_namespace(namespace)
            if born_in >= 0:
                os.close(born_in)

    @staticmethod
    def _stdio(plan: dict[str, Any]) -> tuple[list[int], list[tuple[str, int]]]:
        """Return the child's three fds and the keeper's ends by name; -1 is what the child opens or makes itself."""
        if plan["terminal"]:
            return [-1, -1, -1], []
        inner, outer = [-1], []
        if plan["stdin"]:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            inner = [reading]
            outer.append(("stdin", writing))
        for name in ("stdout", "stderr"):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            inner.append(writing)
            outer.append((name, reading))
        return inner, outer

    def _pid_target(self, mode: str) -> int:
        """Return the pidfd of the process whose PID namespace is shared."""
        if mode == "pod":
            if self._reaper is None or self._reaper.pidfd < 0:
                self._reaper = reaper.start(self._children, self.place)
            return self._reaper.pidfd
        target = self.running(mode.partition(":")[2])
        if target is None:
            raise OSError(errno.ESRCH, "the target container does not run")
        return target.child.pidfd

    def _copied(self, container: Container, setup: Setup, answer: Answer) -> None:
        if setup.terminal >= 0:
            container.terminal = setup.terminal
            container.streams.append(Stream(self._loop, os.dup(setup.terminal), "stdout", container.log))
        self._set_up(container, setup.error, setup.user, answer)

    def _set_up(
        self, container: Container, error: dict[str, Any] | None, user: list[Any] | None, answer: Answer
    ) -> None:
        """The child runs its program, or has reported why not."""
        container.user = user
        ended = container.state == "ended"
        container.child.inspect()
        if error is None and not container.child.ran and not ended:
            # it died without a word, and how is known in a moment
            container.state = "starting"
            container.silent = lambda: self._set_up(container, None, user, answer)
            return
        if error is not None or not container.child.ran:
            container.state = "failed"
            answer(error=error or _silent(container))
            if ended:
                self._discard(container)
            return
        container.started_at = time.time_ns()
        container.state = "running"
        answer(started=container.describe())
        if ended:
            self._end(container)

    def _ended(self, container: Container, status: int) -> None:
        """The first process has ended."""
        container.status = status
        if container.state == "failed":
            self._discard(container)
        elif container.state == "starting":
            container.state = "ended"  # its report may still be to be read, and tells whether it ever ran
            if container.silent is not None:
                container.silent()
        else:
            self._end(container)

    def _end(self, container: Container) -> None:
        container.state = "ending"
        if not container.own_pid:
            self._kill(container)
        if container.execs:
            self._loop.later(_EXECS_PATIENCE, lambda: self._finish(container))
        else:
            self._finish(container)

    def _finish(self, container: Container) -> None:
        if container.state != "ending":
            return
        container.state = "exited"
        group = container.group
        oom = cgroups.oom_kills(group["directories"], group["version"])
        for stream in list(container.streams):
            stream.drain()
        self._on_exit(
            {
                "container": container.id,
                "status": container.status,
                "oom_kills": oom,
                "finished_at": time.time_ns(),
            }
        )
        self._discard(container)

    def _kill(self, container: Container) -> None:
        group = container.group
        cgroups.kill(group["directories"], group["version"])

    def _discard(self, container: Container) -> None:
        """Let go of everything that belongs to a container that has ended or never ran."""
        for stream in container.streams:
            stream.drain()
        container.streams.clear()
        container.log.close()
        for fd in (container.stdin, container.terminal):
            if fd >= 0:
                os.close(fd)
        container.stdin = container.terminal = -1
        if self.by_id.get(container.id) is container:
            del self.by_id[container.id]
        self._remove_group(container.group)
        self._on_gone()

    def _remove_group(self, group: dict[str, Any]) -> None:
        """Remove the control group; dying processes may hold it a moment longer."""
        try:
            cgroups.remove(group["directories"], patience=0.0)
        except OSError:
            self._loop.later(_REMOVE_AGAIN, lambda: self._remove_group(group))


def _traces(plan: dict[str, Any]) -> bool:
    return bool(plan["process"]["capabilities"]["bounding"] >> _SYS_PTRACE & 1)


def _silent(container: Container) -> dict[str, Any]:
    """Describe a child that ended without a word: its seccomp profile refused even the report, or it was killed."""
    message = f"the container's process ended before it ran the program (status {container.status})"
    if container.status != _KILLED:
        message = f"{message}; its seccomp profile may refuse execve"
    elif out_of_memory(container.group):
        message = f"the container's process was killed before it ran the program: {OUT_OF_MEMORY}"
    return {"step": "exec", "errno": 0, "path": "", "message": message}


def out_of_memory(group: dict[str, Any]) -> bool:
    """Tell whether the OOM killer has struck in a control group."""
    return cgroups.oom_kills(group["directories"], group["version"]) > 0


def unified(group: dict[str, Any]) -> int:
    """Return an fd of the group's v2 directory to be born in, or -1 on v1."""
    if group["version"] == 2:
        return os.open(group["directories"][0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return -1


def _attach_device_program(group: dict[str, Any]) -> None:
    if group["device_program"]:
        bpf.attach(group["directories"][0], binascii.a2b_base64(group["device_program"]))
