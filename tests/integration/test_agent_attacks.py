"""What a container or a user of the host may try against starts: only its own start is the worse for it."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.agent import layout, lowering
from crishim.engine.agent.batch import Batch
from crishim.linux import capabilities
from crishim.request import Capabilities, Mount, NamespaceMode
from tests.support.abilities import need_containers
from tests.support.agents import MACHINE, AgentPod, Run, agent_pod
from tests.support.leases import leased
from tests.support.waiting import wait_for

WATCH = """
while :; do
  for p in /proc/[0-9]*; do
    name=
    read -r name < $p/comm
    [ "$name" = crishim-agent ] || continue
    while read -r key value; do
      case $key in CapInh: | CapPrm: | CapEff: | CapBnd: | CapAmb: | Seccomp:) echo $key $value;; esac
    done < $p/status
    while read -r line; do
      case $line in *slot* | *area*) echo mapped $line;; esac
    done < $p/maps
  done
done 2>/dev/null
"""


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


def completes(pod: AgentPod) -> bool:
    """Tell whether the agent, and another start, are as well as ever."""
    pod.run_batch(Batch(MACHINE, layout.AREA + layout.FIRST))
    run = pod.start(pod.plan("/bin/true")).follow()
    assert run.watched is not None
    return run.watched.failure is None and pod.ended(run.pid) == 0


# --- what an image or a volume holds --------------------------------------------------------------


def test_a_search_path_of_three_million_colons_holds_up_nobody(pod: AgentPod) -> None:
    large = pod.start(pod.plan("tool", envs=(("PATH", b":" * 3_000_000),)))
    assert completes(pod)  # with the other one in the middle of its start
    large.follow()
    assert large.watched is not None
    assert str(large.watched.failure) == "exec tool: no such file or directory"
    assert pod.ended(large.pid) == 127
    many = b":".join([b"/d%d" % number for number in range(300_000)])
    large = pod.start(pod.plan("tool", envs=(("PATH", many),)))
    assert completes(pod)
    large.follow()
    assert large.watched is not None
    assert str(large.watched.failure) == "exec tool: executable file not found in $PATH"
    second = large.watched._second
    assert second is not None
    assert len([call for call in second.batch.calls if call.name == "execve"]) == lowering.MAX_CANDIDATES


def test_programs_that_cannot_be_opened_hold_up_nobody(pod: AgentPod, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path(f"{pod.layer}/bin/busybox").read_bytes())
    program.chmod(0o755)
    with leased(str(program)):
        runs = []
        for _ in range(5):
            runs.append(pod.start(pod.plan("/program", mounts=(Mount("/program", str(program)),))))
            go_on(runs[-1])
            assert completes(pod)
        for run in runs:
            assert not select.select([run.report], [], [], 0)[0]
            os.kill(run.pid, signal.SIGKILL)
    assert [pod.ended(run.pid) for run in runs] == [137] * 5


# --- a user of the host ----------------------------------------------------------------------------


@contextlib.contextmanager
def signalling(uid: int, number: int) -> Iterator[None]:
    """Have a user of the host's send a signal to all that it may send one to, over and over."""
    closed, held = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    begun, beginning = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(held)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(beginning, b"!")
            while not select.select([closed], [], [], 0)[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, number)
        finally:
            os._exit(0)
    for fd in (closed, beginning):
        os.close(fd)
    try:
        assert os.read(begun, 1) == b"!"
        yield
    finally:
        os.close(begun)
        os.close(held)
        os.waitpid(pid, 0)


def own_uid() -> int:
    """Return an id that no process of this machine has: kill(-1) reaches all with it."""
    return 1_700_000_000 + os.getpid()


@pytest.mark.parametrize("mode", [NamespaceMode.CONTAINER, NamespaceMode.NODE])
def test_a_user_who_kills_all_of_its_own(pod: AgentPod, mode: NamespaceMode) -> None:
    sibling = pod.start(pod.plan("/bin/sleep", "100")).follow()
    with signalling(own_uid(), signal.SIGKILL):
        for _ in range(10):
            run = pod.start(pod.plan("/bin/sleep", "100", pid=mode, run_as_user=own_uid())).follow()
            assert run.watched is not None
            assert run.watched.failure is None
            assert pod.ended(run.pid) == 137
            assert completes(pod)
    assert pod.status(sibling.pid) is None


def test_a_user_who_stops_all_of_its_own(pod: AgentPod) -> None:
    sibling = pod.start(pod.plan("/bin/sleep", "100")).follow()
    with signalling(own_uid(), signal.SIGSTOP):
        for _ in range(5):
            run = pod.start(pod.plan("/bin/sleep", "100", run_as_user=own_uid()))
            go_on(run)
            stopped = Path(f"/proc/{run.pid}/status")
            wait_for(lambda stopped=stopped: "(stopped)" in stopped.read_text(encoding="ascii"))  # type: ignore[misc]
            assert completes(pod)
            os.kill(run.pid, signal.SIGKILL)
            assert pod.ended(run.pid) == 137
    assert pod.status(sibling.pid) is None


# --- a container that may trace ----------------------------------------------------------------------


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_a_tracer_never_sees_a_process_with_more_than_its_containers_rights(pod: AgentPod, no_new_privs: bool) -> None:
    may_trace = Capabilities(add=("SYS_PTRACE",))
    plan = pod.plan("/bin/sh", "-c", WATCH, capabilities=may_trace, no_new_privs=no_new_privs)
    tracer = pod.start(plan).follow()
    assert tracer.watched is not None
    assert tracer.watched.failure is None
    for number in range(300):
        if number > 50 and select.select([tracer.output], [], [], 0)[0]:
            break
        run = pod.execute(plan, tracer.pid, "/bin/true").follow()
        assert run.watched is not None
        assert run.watched.failure is None
        assert pod.ended(run.watched.pid_inside()) == 0
        run.close()
        pod.runs.remove(run)
    os.kill(tracer.pid, signal.SIGKILL)
    seen = {tuple(line.split(" ", 1)) for line in tracer.text().splitlines()}
    assert pod.ended(tracer.pid) == 137
    mask = capabilities.DEFAULT_MASK | 1 << capabilities.NUMBERS["SYS_PTRACE"]
    found = {int(value, 16) for key, value in seen if key.startswith("Cap")}
    assert found
    assert [f"{value:x}" for value in found if value & ~mask] == []
    assert [value for key, value in seen if key == "mapped"] == []
    filtered = {value for key, value in seen if key == "Seccomp:"}
    assert filtered <= ({"0", "2"} if no_new_privs else {"2"})
