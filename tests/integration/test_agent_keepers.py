"""Agents and their keepers: who dies, who takes over, what is lost, what an agent is."""

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.agent import area, births, layout, pods, shapes, starts, watching
from crishim.engine.agent.batch import Batch
from crishim.linux import calls
from tests.support.abilities import need_containers
from tests.support.agents import MACHINE, PATIENCE, AgentPod, agent_pod
from tests.support.waiting import wait_for

_PR_GET_PDEATHSIG = 2


@pytest.fixture
def pod(tmp_path: Path, test_leaks: None) -> Iterator[AgentPod]:
    need_containers()
    with agent_pod(str(tmp_path)) as made:
        yield made


def batch() -> Batch:
    return Batch(MACHINE, layout.AREA + layout.FIRST)


# --- deaths ---------------------------------------------------------------------------------------


def test_a_child_that_is_killed_while_it_waits(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/true"))
    assert len(run.report.recv(4096)) == 8
    os.kill(run.pid, signal.SIGKILL)
    assert run.report.recv(4096) == b""
    assert pod.ended(run.pid) == 137
    run = pod.start(pod.plan("/bin/true")).follow()
    assert pod.ended(run.pid) == 0


def test_a_killed_agent_ends_what_has_not_execd_and_leaves_the_rest_to_its_groups(pod: AgentPod) -> None:
    waiting = pod.start(pod.plan("/bin/true"))
    assert len(waiting.report.recv(4096)) == 8
    running = pod.start(pod.plan("/bin/sleep", "100")).follow()
    pidfd = os.pidfd_open(running.pid)
    pod.kill_agent()
    assert waiting.report.recv(4096) == b""
    signal.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)
    with pytest.raises(area.NoAnswerError):
        pod.bell.ring(pod.agent)


def test_ends_wait_for_whoever_asks(pod: AgentPod) -> None:
    runs = [pod.start(pod.plan("/bin/sh", "-c", f"exit {code}")).follow() for code in range(5)]
    for run in runs:
        run.text()
    assert [pod.ended(run.pid) for run in runs] == list(range(5))
    assert Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text(encoding="ascii") == ""


# --- keepers --------------------------------------------------------------------------------------


def test_another_keeper_takes_over_with_the_descriptors_and_drops_what_was_never_rung(pod: AgentPod) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pod.run_batch(pods.hold(MACHINE, layout.block(1)), [writing])
    os.close(writing)
    never = batch()
    never.call("close", layout.block(1))
    pod.agent.write(never.finish().content)
    assert not pod.agent.done()
    pod.bell.close()
    pod.bell = area.Bell(f"keeper-{time.monotonic_ns()}.sock")
    (taken,) = pod.bell.take_over(pod.agent, [layout.block(1)])
    assert pod.agent.done()
    assert os.readlink(f"/proc/self/fd/{taken}") == os.readlink(f"/proc/self/fd/{reading}")
    os.write(taken, b"still there")
    assert os.read(reading, 100) == b"still there"
    for fd in (taken, reading):
        os.close(fd)
    pod.run_batch(batch())


def test_an_agent_holds_a_starts_descriptors_at_known_numbers(pod: AgentPod) -> None:
    before = set(os.listdir(f"/proc/{pod.pid}/fd"))
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.posix_fallocate(slot, 0, layout.PAGE)
    child = Batch(MACHINE, layout.SLOT)
    child.call("exit_group", 3)
    os.pwrite(slot, child.finish().content, 0)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    needs = (layout.Stage.SLOT,)
    numbers = {"held0": layout.block(1), "held1": layout.block(1) + 1}
    blob = starts.bear(MACHINE, needs, 0, held=2).fill(slot_size=layout.PAGE, **numbers)
    pod.bell.run(pod.agent, blob, [slot, reading, writing], PATIENCE)
    assert pod.ended(pod.agent.result(starts.clone_index(needs, 2))) == 3
    assert before == {"0", "1", "2", "3"} | (set() if pod.place else {str(layout.HELD_POD)})
    assert set(os.listdir(f"/proc/{pod.pid}/fd")) - before == {str(number) for number in numbers.values()}
    pod.bell.close()
    pod.bell = area.Bell(f"keeper-{time.monotonic_ns()}.sock")
    taken = pod.bell.take_over(pod.agent, list(numbers.values()))
    assert [os.fstat(fd).st_ino for fd in taken] == [os.fstat(reading).st_ino] * 2
    for fd in (slot, reading, writing, *taken):
        os.close(fd)


def test_what_came_along_with_a_batch_that_failed_is_cleaned_away(pod: AgentPod) -> None:
    before = os.listdir(f"/proc/{pod.pid}/fd")
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.posix_fallocate(slot, 0, layout.PAGE)
    impossible = calls.CLONE_NEWNS | 0x200  # with CLONE_FS: EINVAL (clone(2))
    blob = starts.bear(MACHINE, (layout.Stage.SLOT,), impossible, held=1)
    with pytest.raises(area.BatchFailedError) as caught:
        pod.bell.run(pod.agent, blob.fill(slot_size=layout.PAGE, held0=layout.block(1)), [slot, slot], PATIENCE)
    assert (caught.value.record.position, caught.value.record.errno) == (starts.clone_index((0,), 1), errno.EINVAL)
    cleaned = starts.clean(MACHINE).fill(slot_size=layout.PAGE, first=layout.block(1), last=layout.block(2) - 1)
    pod.bell.run(pod.agent, cleaned, (), PATIENCE)
    assert os.listdir(f"/proc/{pod.pid}/fd") == before
    assert "slot" not in Path(f"/proc/{pod.pid}/maps").read_text(encoding="ascii")
    os.close(slot)


@pytest.mark.parametrize("heard", [False, True])
def test_a_start_goes_on_with_another_keeper(pod: AgentPod, heard: bool) -> None:
    plan = pod.plan("/bin/sh", "-c", "echo $HOME")
    run = pod.start(plan)
    if heard:
        assert len(run.report.recv(4096)) == 8  # and then the keeper dies
    old = run.watched
    assert old is not None
    run.watched = watching.Watched(shapes.ready(old._first), plan["process"], MACHINE)
    run.watched.bind(run.slot)
    if heard:
        wait_for(run.watched.waits)
        assert not select.select([run.report], [], [], 0)[0]
        run.watched.resume()
        run.report.send(b"goes on.")
    run.follow()
    assert run.watched.failure is None
    assert run.text() == "/root\n"
    assert pod.ended(run.pid) == 0


def test_one_keeper_at_a_time(pod: AgentPod) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            area.Agent("agent.sock", os.open("agent.area", os.O_RDWR))
        except BlockingIOError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_answer_that_is_lost_costs_only_a_look(pod: AgentPod) -> None:
    held = batch()
    held.call("getpid")
    number = pod.agent.write(held.finish().content)
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # has no name: nobody can answer it
    stranger.sendto(number.to_bytes(8, "little"), "agent.sock")
    stranger.close()
    assert pod.bell.wait(pod.agent, number, time.monotonic() + PATIENCE) == []
    assert pod.agent.result(0) == pod.pid


def test_an_answer_whose_descriptors_cannot_go_comes_without(pod: AgentPod) -> None:
    pod.agent.want([999])
    assert pod.bell.run(pod.agent, batch().finish().content, (), PATIENCE) == []
    assert pod.agent.done()


def test_agents_are_rung_ten_at_a_time_and_the_rest_when_some_have_answered(pod: AgentPod) -> None:
    made, new = pods.another(MACHINE)
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.posix_fallocate(slot, 0, layout.PAGE)
    os.pwrite(slot, new.finish().content, 0)
    content = made.finish().content
    agents, pids = [], []
    try:
        for number in range(12):
            name = f"more-{number}"
            sock, fd = births.make_socket(f"{name}.sock"), births.make_area(f"{name}.area")
            pod.bell.run(pod.agent, content, [slot, sock.fileno(), fd], PATIENCE)
            pids.append(pod.agent.result(5))
            sock.close()
            agents.append(area.Agent(f"{name}.sock", fd))
        asked = batch()
        asked.call("getpid")
        content = asked.finish().content
        numbers = [agent.write(content) for agent in agents]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
        for agent, number in list(zip(agents, numbers, strict=True))[: area.AT_ONCE]:
            pod.bell.ring(agent, number)
        assert not pod.bell.free
        with pytest.raises(RuntimeError, match="10 agents have not answered yet"):
            pod.bell.ring(agents[10], numbers[10])
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: all(agent.done() for agent in agents[: area.AT_ONCE]))
        wait_for(lambda: len(answers := pod.bell.answers()) > 0 and all(not answer.fds for answer in answers))
        for agent, number in list(zip(agents, numbers, strict=True))[area.AT_ONCE :]:
            pod.bell.ring(agent, number)
            pod.bell.wait(agent, number, time.monotonic() + PATIENCE)
        assert [agent.result(0) for agent in agents] == pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for agent in agents:
            agent.close()
        os.close(slot)


def test_a_stopped_agent_goes_on(pod: AgentPod) -> None:
    os.kill(pod.pid, signal.SIGSTOP)
    os.waitpid(pod.pid, os.WUNTRACED)
    os.kill(pod.pid, signal.SIGCONT)
    pod.run_batch(batch())


def test_an_agent_makes_another_one(pod: AgentPod) -> None:
    made, new = pods.another(MACHINE)
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.posix_fallocate(slot, 0, layout.PAGE)
    os.pwrite(slot, new.finish().content, 0)
    sock, fd = births.make_socket("second.sock"), births.make_area("second.area")
    pod.run_batch(made, [slot, sock.fileno(), fd])
    pid = pod.agent.result(5)
    os.close(slot)
    sock.close()
    second = area.Agent("second.sock", fd)
    try:
        asked = batch()
        asked.call("getpid")
        asked.call("getppid")
        pod.bell.run(second, asked.finish().content, (), PATIENCE)
        assert [second.result(0), second.result(1)] == [pid, os.getpid()]
        pod.bell.run(second, asked.finish().content, (), PATIENCE)
        pod.run_batch(batch())
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="ascii")
        assert ("second.area" in maps, "/agent.area" in maps) == (True, False)
        assert os.listdir(f"/proc/{pid}/fd") == ["0", "1", "2", "3"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        second.close()


class Spares:
    """A keeper of a process of its own, with an agent that it started and one that this one made."""

    def __init__(self, *, named: bool) -> None:
        reading, told = os.pipe2(os.O_CLOEXEC)
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                self._serve(told, named=named)
            finally:
                os._exit(1)
        os.close(told)
        self.pidfds = [os.pidfd_open(int.from_bytes(os.read(reading, 4), "little")) for _ in range(2)]
        os.close(reading)

    @staticmethod
    def _serve(told: int, *, named: bool) -> None:
        keeper = os.getpid()
        bell = area.Bell("spares-keeper.sock")
        sock, fd = births.make_socket("spare-0.sock"), births.make_area("spare-0.area")
        pid = births.start(births.make_program(MACHINE), sock.fileno(), fd)
        first = area.Agent("spare-0.sock", fd)
        bell.run(first, pods.settled(MACHINE, keeper).finish().content, (), PATIENCE)
        sock, fd = births.make_socket("spare-1.sock"), births.make_area("spare-1.area")
        made, new = pods.another(MACHINE, keeper)
        slot = os.memfd_create("slot", os.MFD_CLOEXEC)
        os.posix_fallocate(slot, 0, layout.PAGE)
        os.pwrite(slot, new.finish().content, 0)
        bell.run(first, made.finish().content, [slot, sock.fileno(), fd], PATIENCE)
        second = area.Agent("spare-1.sock", fd)
        pids = (pid, first.result(5))
        for agent in (first, second):
            last = pods.names(MACHINE, "", "") if named else batch()
            bell.run(agent, last.finish().content, (), PATIENCE)
        for number in pids:
            os.write(told, number.to_bytes(4, "little"))
        signal.pause()

    def kill_keeper(self) -> None:
        """Kill the keeper, whose names stay."""
        os.kill(self._keeper, signal.SIGKILL)
        os.waitpid(self._keeper, 0)

    def end(self) -> bool:
        """Wait for the end of both agents."""
        ended = [bool(select.select([pidfd], [], [], PATIENCE)[0]) for pidfd in self.pidfds]
        for pidfd in self.pidfds:
            os.close(pidfd)
        return all(ended)


def test_spare_agents_end_with_their_keeper(pod: AgentPod) -> None:
    spares = Spares(named=False)
    spares.kill_keeper()
    assert spares.end()


def test_agents_of_pods_outlive_their_keeper(pod: AgentPod) -> None:
    spares = Spares(named=True)
    spares.kill_keeper()
    for number, pidfd in enumerate(spares.pidfds):
        agent = area.Agent(f"spare-{number}.sock", os.open(f"spare-{number}.area", os.O_RDWR))
        asked = batch()
        asked.call("prctl", _PR_GET_PDEATHSIG, place := asked.room(8), 0, 0, 0)
        asked.call("getpid", expect=(place, 0xFFFFFFFF, 0))
        pod.bell.run(agent, asked.finish().content, (), PATIENCE)
        agent.close()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert spares.end()


def test_an_agent_whose_keeper_is_gone_before_it_is_settled_ends(pod: AgentPod) -> None:
    sock, fd = births.make_socket("spare.sock"), births.make_area("spare.area")
    pid = births.start(pod.program, sock.fileno(), fd)
    sock.close()
    agent = area.Agent("spare.sock", fd)
    pod.bell.ring(agent, agent.write(pods.settled(MACHINE, 1).finish().content))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pod.bell.forget(agent)
    agent.close()


def test_an_agents_program_cannot_be_written(pod: AgentPod) -> None:
    with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
        os.open(f"/proc/{pod.pid}/exe", os.O_WRONLY)
