"""Starts that do not come to an end, and processes that end without a word: what is told of them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.engine.agent.watching import Failure
from crishim.request import Mount, NamespaceMode
from tests.support import filters, fuse
from tests.support.abilities import need_containers
from tests.support.agents import AgentPod, Run, agent_pod
from tests.support.leases import leased
from tests.support.waiting import wait_for

HOST, POD = NamespaceMode.NODE, NamespaceMode.POD
OWN = NamespaceMode.CONTAINER


@pytest.fixture
def pod(tmp_path: Path, test_leaks: None) -> Iterator[AgentPod]:
    need_containers()
    with agent_pod(str(tmp_path)) as made:
        yield made


def go_on(run: Run) -> None:
    """Take the child's first stop."""
    assert run.watched is not None
    assert len(stop := run.report.recv(4096)) == 8
    assert run.watched.heard(stop)
    run.report.send(b"goes on.")


def hangs(run: Run, call: str) -> Failure:
    """Wait until the child is in a call, and return what is told of it."""
    if not os.path.exists("/proc/self/syscall"):
        pytest.skip("lacks /proc/<pid>/syscall")
    watched = run.watched
    assert watched is not None
    wait_for(lambda: watched.hanging(run.pid).call == call)
    return watched.hanging(run.pid)


# --- what hangs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_a_program_that_cannot_be_opened(pod: AgentPod, tmp_path: Path, inside: bool) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path(f"{pod.layer}/bin/busybox").read_bytes())
    program.chmod(0o755)
    plan = pod.plan("/bin/sleep" if inside else "/program", "100", mounts=(Mount("/program", str(program)),))
    container = pod.start(plan)
    if inside:
        container.follow()
    with leased(str(program)):
        run = pod.execute(plan, container.pid, "/program") if inside else container
        go_on(run)
        failure = hangs(run, "execve")
        assert str(failure) == "execve /program: still opening"
        assert failure.reason == "the program"
        assert run.watched is not None
        pid = run.watched.pid_inside() or run.pid
        os.kill(pid, signal.SIGSTOP)  # takes effect once the lease is gone
    wait_for(lambda: "stopped" in Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    os.kill(pid, signal.SIGKILL)
    assert pod.ended(pid) == 137


def test_a_host_path_whose_server_does_not_answer(pod: AgentPod, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    plan = pod.plan("/bin/true", mounts=(Mount("/data", f"{tmp_path}/share/below"),))
    with fuse.silent(str(tmp_path / "share")):
        run = pod.start(plan)
        failure = hangs(run, "openat2")
        assert (
            str(failure)
            == f"mount /data: host path {tmp_path}/share/below: openat2 {tmp_path}/share/below: still opening"
        )
        assert failure.reason == f"hold {tmp_path}/share/below for /data"
        os.kill(run.pid, signal.SIGKILL)
    assert pod.ended(run.pid) == 137


def test_a_working_directory_whose_server_does_not_answer(pod: AgentPod, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    plan = pod.plan("/bin/true", working_dir="/data/below", mounts=(Mount("/data", str(tmp_path / "share")),))
    with fuse.silent(str(tmp_path / "share")):
        run = pod.start(plan)
        go_on(run)
        assert str(hangs(run, "openat2")) == "working directory /data/below: openat2 /data/below: still opening"
        os.kill(run.pid, signal.SIGKILL)
    assert pod.ended(run.pid) == 137


def test_a_keeper_that_does_not_answer_and_a_signal_that_stops_the_child(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/true"))
    assert str(hangs(run, "read")) == "read go on from users: still waiting for its keeper"
    os.kill(run.pid, signal.SIGSTOP)
    assert run.watched is not None
    watched = run.watched
    wait_for(lambda: str(watched.hanging(run.pid)).endswith(": stopped by a signal"))
    os.kill(run.pid, signal.SIGKILL)
    assert pod.ended(run.pid) == 137
    assert watched.hanging(run.pid).call == "after write"


# --- who ends without a word ----------------------------------------------------------------------


def started(pod: AgentPod, target: int, seccomp: str, *command: str, **fields: Any) -> Run:
    """Start a container with a filter, and follow it."""
    plan = pod.plan(*command, **fields)
    plan["process"]["seccomp"] = seccomp
    return pod.start(plan, target).follow()


def told(pod: AgentPod, run: Run) -> str:
    """Return what is told of a start that failed."""
    assert run.watched is not None
    status = pod.ended(run.watched.pid_inside() or run.pid)
    assert status in {127, 128 + signal.SIGSYS, 128 + signal.SIGILL}
    return str(run.watched.failure or run.watched.silent(status))


def runs(pod: AgentPod, run: Run) -> bool:
    """Tell whether a start's program has run to its end."""
    assert run.watched is not None
    return run.watched.failure is None and pod.ended(run.watched.pid_inside() or run.pid) == 0


@pytest.mark.parametrize("no_new_privs", [False, True])
@pytest.mark.parametrize("mode", [OWN, POD, HOST])
@pytest.mark.parametrize("action", [filters.ERRNO, filters.NO_ERRNO, filters.KILL, filters.KILL_THREAD, filters.TRAP])
def test_a_filter_that_refuses_the_program(pod: AgentPod, mode: NamespaceMode, no_new_privs: bool, action: int) -> None:
    words = "kills the process in this call" if filters.kills(action) else "refuses this call"
    said = f"execve /bin/true: its seccomp profile {words}"
    first, target = pod.first_process() if mode is POD else (None, -1)
    for calls in (("execve",), ("execve", "write"), ("execve", "write", "exit_group")):
        seccomp = filters.refusing(action, *calls)
        assert told(pod, started(pod, target, seccomp, "/bin/true", pid=mode, no_new_privs=no_new_privs)) == said
    if first is not None:
        os.close(target)


@pytest.mark.parametrize("action", [filters.ERRNO, filters.KILL])
def test_a_filter_that_refuses_what_would_tell_why(pod: AgentPod, action: int) -> None:
    for call in ("write", "faccessat"):
        why = f"did not run, and its seccomp profile refuses {call}, which would tell why"
        assert (
            told(pod, started(pod, -1, filters.refusing(action, call), "/bin/not-there"))
            == f"exec /bin/not-there: {why}"
        )


@pytest.mark.parametrize("action", [filters.ERRNO, filters.KILL])
def test_a_filter_that_refuses_a_session_or_a_terminal(pod: AgentPod, action: int) -> None:
    words = "kills the process in this call" if filters.kills(action) else "refuses this call"
    first, target = pod.first_process()
    assert first.pid
    for call, what in (("setsid", "setsid"), ("ioctl", "ioctl TIOCSCTTY")):
        run = started(pod, target, filters.refusing(action, call), "/bin/true", pid=POD, tty=True)
        assert told(pod, run) == f"{what}: its seccomp profile {words}"
    # with no_new_privs the filter comes after these
    seccomp = filters.refusing(action, "setsid", "ioctl", "clone", "clone3")
    assert runs(pod, started(pod, target, seccomp, "/bin/true", pid=POD, tty=True, no_new_privs=True))
    os.close(target)


def test_a_filter_that_refuses_rights(pod: AgentPod) -> None:
    seccomp = filters.refusing(filters.ERRNO, "capset")
    assert told(pod, started(pod, -1, seccomp, "/bin/true")) == "capset: its seccomp profile refuses this call"
    assert runs(pod, started(pod, -1, seccomp, "/bin/true", no_new_privs=True))  # the filter comes after that


@pytest.mark.parametrize("action", [filters.LOG, filters.ALLOW])
def test_a_filter_that_lets_the_program_be(pod: AgentPod, action: int) -> None:
    assert runs(pod, started(pod, -1, filters.refusing(action, "execve", "exit_group", "write"), "/bin/true"))


def test_a_filter_that_nobody_listens_to(pod: AgentPod) -> None:
    for action in (filters.NOTIFY, filters.TRACE):
        run = started(pod, -1, filters.refusing(action, "execve"), "/bin/true")
        assert told(pod, run) == "execve /bin/true: its seccomp profile refuses this call"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed before it ran its program"),
        (signal.SIGSEGV, "killed by SIGSEGV before it ran its program"),
        (40, "killed by signal 40 before it ran its program"),
    ],
)
def test_a_child_that_is_killed(pod: AgentPod, number: int, words: str) -> None:
    run = pod.start(pod.plan("/bin/true", pid=HOST))  # a namespace's process 1 is not ended by all of them
    assert len(run.report.recv(4096)) == 8
    os.kill(run.pid, number)
    assert run.report.recv(4096) == b""
    assert run.watched is not None
    failure = run.watched.silent(pod.ended(run.pid))
    assert str(failure) == f"exec /bin/true: {words}"
    assert failure.reason in {"after write stop users", "after pread64 /etc/group"}  # it may not have come back yet
    assert "memory limit" in str(run.watched.silent(137, out_of_memory=True))
