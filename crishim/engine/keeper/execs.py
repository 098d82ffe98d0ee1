"""Further processes in running containers, for ExecSync: forked into the container's PID namespace.

The daemon passes the process's stdio as fds, so its output never comes through the keeper. An exec belongs to the
connection that asked for it: when that goes, its process tree is killed. The tree is what descends from the process
or is in its session, looked up in the container's control group; an orphan descends from it too, since the process is
its subreaper (`execute.join`). A process that cannot run its program is answered with an error that says `inside`: it
may be the container's own fault, not the engine's.
"""

import errno
import os
from typing import Any

from crishim.engine import wire
from crishim.engine.execute import join as executor
from crishim.engine.execute import process
from crishim.engine.execute.report import Reporter
from crishim.engine.keeper.children import (
    Child,
    Children,
    Setup,
    join_pid_namespace,
    leave_pid_namespace,
    watch_set_up,
)
from crishim.engine.keeper.connection import Connection
from crishim.engine.keeper.containers import OUT_OF_MEMORY, Container, Containers, out_of_memory, unified
from crishim.engine.keeper.loop import Loop
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.processes import PARENT, SESSION, STATE, stat_fields

_KILL_ROUNDS = 3  # where a task in an uninterruptible wait keeps the group from being wholly frozen


class Exec:
    """One exec and whom to tell."""

    __slots__ = ("child", "connection", "container", "killed", "number", "reported", "request", "status")

    def __init__(self, request: wire.Message, connection: Connection, container: Container) -> None:
        self.number: int = request["exec"]
        self.request = request
        self.connection = connection
        self.container = container
        self.child: Child
        self.status = -1
        self.reported = False
        self.killed = False


class Execs:
    """All execs of the pod, by connection and the number that the daemon gave them."""

    def __init__(self, loop: Loop, children: Children, containers: Containers) -> None:
        self._loop = loop
        self._children = children
        self._containers = containers
        self._running: list[Exec] = []

    def start(self, connection: Connection, request: wire.Message, fds: list[int]) -> None:
        """Start `request["plan"]` with fds as stdin, stdout, stderr; answer when it runs, send `exec_exit` at its end.

        Raises:
            OSError: the container does not run, or the process could not be made.
        """
        plan: dict[str, Any] = request["plan"]
        container = self._containers.running(plan["container_id"])
        if container is None or container.child.pidfd < 0:
            raise ProcessLookupError(errno.ESRCH, "the container does not run")
        run = Exec(request, connection, container)
        ours, theirs = wire.pair()
        screened = self._containers.watched()
        own = -1 if screened else join_pid_namespace(container.child.pidfd)
        try:
            pid, pidfd = self._fork(plan, container, theirs, fds, screened=screened)
        except BaseException:
            ours.close()
            raise
        finally:
            if own >= 0:
                leave_pid_namespace(own)
            theirs.close()
        run.child = self._children.add(pid, pidfd, lambda status: self._ended(run, status))
        container.execs += 1
        self._running.append(run)
        watch_set_up(
            self._loop,
            self._children,
            run.child,
            ours,
            lambda result: self._set_up(run, result),
            screened=screened,
        )

    def kill(self, connection: Connection, number: int) -> bool:
        """SIGKILL one exec with what it started; tell whether it was there, so that its `exec_exit` will come."""
        found = [run for run in self._running if run.connection is connection and run.number == number]
        for run in found:
            self._kill_tree(run)
        return bool(found)

    def connection_closed(self, connection: Connection) -> None:
        """SIGKILL what belongs to a connection that is gone."""
        for run in [r for r in self._running if r.connection is connection]:
            self._kill_tree(run)

    def _fork(
        self, plan: dict[str, Any], container: Container, theirs: Any, fds: list[int], *, screened: bool
    ) -> tuple[int, int]:
        """Fork into the container's control group; where that has groups of its own on v2, into its process 1's."""
        group = plan["cgroup"]
        born_in = unified(group)
        try:
            try:
                pid, pidfd = calls.clone3(0, born_in)
            except OSError as error:
                if error.errno != errno.EBUSY or born_in < 0:
                    raise
                leaf = cgroups.leaf(container.child.pid, _mountpoint(group["directories"][0]))
                os.close(born_in)
                born_in = -1
                born_in = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                pid, pidfd = calls.clone3(0, born_in)
            if pid == 0:
                reporter = Reporter(theirs)
                program = executor.run(
                    plan,
                    reporter,
                    (fds[0], fds[1], fds[2]),
                    container.child.pidfd,
                    own_cgroup_namespace=container.cgroup_namespace,
                    born_unified=born_in >= 0,
                    screened=screened,
                )
                process.become(program, reporter)
        finally:
            if born_in >= 0:
                os.close(born_in)
        return pid, pidfd

    def _set_up(self, run: Exec, result: Setup) -> None:
        run.child.inspect()
        run.reported = True
        if result.terminal >= 0:
            os.close(result.terminal)
        if result.error is not None or not run.child.ran:
            run.connection.answer(run.request, error={**(result.error or _silent(run)), "inside": True})
        else:
            run.connection.answer(run.request, pid=run.child.pid, user=result.user)
        if run.status >= 0:
            self._finish(run)

    def _ended(self, run: Exec, status: int) -> None:
        run.status = status
        if run.reported:
            self._finish(run)

    def _finish(self, run: Exec) -> None:
        run.connection.send({"event": "exec_exit", "exec": run.number, "status": run.status})
        self._forget(run)

    def _forget(self, run: Exec) -> None:
        self._running.remove(run)
        self._containers.exec_ended(run.container)

    def _kill_tree(self, run: Exec) -> None:
        """Kill the process and what it started, while the container stands still: nothing starts anything meanwhile."""
        run.killed = True
        if run.child.settle is not None:
            run.child.settle()
        if run.child.settle is not None:
            # another process may still go on in its place before the signal strikes
            run.child.moved = lambda: self._kill_tree(run)
        group = run.container.group
        try:
            for _ in range(_KILL_ROUNDS):
                frozen = cgroups.freeze(group["directories"], group["version"])
                _kill_all(_tree_of(run))
                if frozen:
                    break
        except OSError:  # the container's group is on its way out, with all that is in it
            _kill_all({run.child.pid} if run.child.pidfd >= 0 else set())
        finally:
            cgroups.thaw(group["directories"])


def _tree_of(run: Exec) -> set[int]:
    """Return the exec's living processes."""
    tree = _tree(run.child.pid, cgroups.pids(run.container.group["directories"]))
    return tree | {run.child.pid} if run.child.pidfd >= 0 else tree


def _kill_all(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def _tree(root: int, pids: list[int]) -> set[int]:
    """Return those of `pids` that are in the session of `root` or descend from such a process; zombies left out."""
    parents: dict[int, int] = {}
    tree: set[int] = set()
    for pid in pids:
        try:
            fields = stat_fields(pid)
        except OSError:
            continue
        if fields[STATE] in {b"Z", b"X"}:
            continue
        parents[pid] = int(fields[PARENT])
        if int(fields[SESSION]) == root or pid == root:
            tree.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree and pid not in tree}
        tree |= more
        grown = bool(more)
    return tree


def _mountpoint(directory: str) -> str:
    """Return the mount point of the v2 hierarchy that `directory` is in: the last one above with the same device."""
    device = os.stat(directory).st_dev
    while True:
        above = os.path.dirname(directory)
        if above == directory or os.stat(above).st_dev != device:
            return directory
        directory = above


def _silent(run: Exec) -> dict[str, Any]:
    """Describe a child that ended without a word: it was killed, which execve(2) cannot say (EINTR)."""
    message = "the process was killed before it ran its program"
    if not run.killed and out_of_memory(run.container.group):
        message = f"{message}: {OUT_OF_MEMORY}"
    return {"step": "exec", "errno": 4, "path": "", "message": message}
