"""Keepers that outlive their daemon, that die, and the spawner that dies: nothing is forgotten, nothing stays."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine import wire
from crishim.engine.client import Engine
from crishim.errors import CrishimError, UnavailableError
from crishim.linux.cgroups import apply
from crishim.request import ContainerSecurity, NamespaceMode, NamespaceOptions, SandboxSecurity
from tests.support.lab import Lab, Pod, lives, open_lab, scenario, until


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


async def another_daemon(lab: Lab, pod: Pod) -> Engine:
    """Let the pod's daemon go and a new one take over."""
    pod.keeper.detach()
    engine = lab.new_engine()
    await engine.start()
    keeper = await engine.adopt(pod.id)
    assert keeper is not None
    pod.meet(keeper)
    return engine


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def journal(lab: Lab, pod: Pod) -> list[int]:
    lines = Path(lab.paths.journal(pod.id)).read_bytes().split(b"\n")
    return [json.loads(line)["seq"] for line in lines if line]


@scenario
async def test_adoption(lab: Lab) -> None:
    async with lab.pod() as pod:
        stays = await pod.run("echo before; trap 'echo after; exit 8' TERM; while :; do sleep 0.01; done")
        ends = await pod.run("exit 7")
        await pod.logged(stays, b"before")
        await pod.ended(ends)
        pod.keeper.detach()
        await asyncio.sleep(0.05)
        assert lives(stays.started.pid)
        pod.exits.clear()
        engine = await another_daemon(lab, pod)
        try:
            assert pod.keeper.running == {stays.id: stays.started}
            entry = pod.exits[ends.id]
            assert (entry.exit_code, entry.seq) == (7, 1)
            assert 0 < entry.finished_at - ends.started.started_at < time.time_ns()
            assert (await pod.exec(stays, "exit 5"))[2] == 5
            assert journal(lab, pod) == [1]
            await pod.keeper.ack(1)
            await pod.keeper.signal(stays.id, signal.SIGTERM)
            assert (await pod.ended(stays)).exit_code == 8
            assert stays.output() == b"before\nafter\n"
            assert journal(lab, pod) == [2]
            await pod.keeper.ack(2)
            await until(lambda: journal(lab, pod) == [])
        finally:
            await engine.close()
        # a third daemon hears nothing of what was acknowledged
        engine = await another_daemon(lab, pod)
        await engine.close()
        assert pod.keeper.exits == []


@scenario
async def test_exit_while_no_daemon_is_there(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("sleep 0.2; echo out; exit 7")
        pod.keeper.detach()
        await until(lambda: not lives(container.started.pid))
        await until(lambda: journal(lab, pod) == [1])
        engine = await another_daemon(lab, pod)
        await engine.close()
        assert pod.exits[container.id].exit_code == 7
        assert container.output() == b"out\n"


@scenario
async def test_execs_end_with_their_daemon(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("/bin/sleep", "600")
        call = asyncio.ensure_future(pod.exec(container, "sleep 600 & sleep 600"))
        directories = container.plan.cgroup.directories
        await until(lambda: sum(b"sleep\x00600" in command(pid) for pid in apply.pids(directories)) == 3)
        pod.keeper.detach()
        assert (await call)[2] == 137
        await until(lambda: [p for p in apply.pids(directories) if lives(p)] == [container.started.pid])
        engine = await another_daemon(lab, pod)
        await engine.close()


@scenario
async def test_dead_keeper(lab: Lab) -> None:
    async with lab.pod() as pod:
        ended = await pod.run("exit 9")
        await pod.ended(ended)
        runs = await pod.run("sleep 600 & sleep 600")
        os.kill(pod.keeper.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await pod.lost.wait()
        with pytest.raises(UnavailableError):
            await pod.keeper.signal(runs.id, signal.SIGTERM)
        assert await lab.engine.adopt(pod.id) is None
        assert [(e.container_id, e.exit_code, e.seq) for e in lab.engine.journal(pod.id)] == [(ended.id, 9, 1)]
        lab.engine.remove_pod(pod.id, pod.group)
        lab.engine.remove_pod(pod.id, pod.group)  # idempotent
        await until(lambda: not lives(runs.started.pid))
        assert os.listdir(lab.paths.pods) == []


@scenario
async def test_keeper_that_is_told_to_stop_is_not_lost(lab: Lab) -> None:
    async with lab.pod() as pod:
        containers = [await pod.run("sleep 600 & sleep 600") for _ in range(3)]
        await pod.keeper.stop()
        assert {pod.exits[c.id].exit_code for c in containers} == {137}
        assert not pod.lost.is_set()
        await pod.keeper.stop()  # idempotent


@scenario
async def test_stop_does_not_wait_for_a_failed_start(lab: Lab) -> None:
    async with lab.pod() as pod:
        starts = [asyncio.ensure_future(pod.run("/bin/nope", "")) for _ in range(5)]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        # the keeper leaves with its last container: its own patience of ten seconds is for what cannot be killed
        async with asyncio.timeout(8):
            await pod.keeper.stop()
        for start in starts:
            with pytest.raises(CrishimError):
                await start


@scenario
async def test_stopped_keeper_does_not_hold_its_pod(lab: Lab) -> None:
    async with lab.pod() as pod:
        runs = await pod.run("exec sleep 600")
        await lab.engine.adopt("f" * 64)  # nobody there
        os.kill(pod.keeper.pid, signal.SIGKILL)
        await pod.keeper.stop()
        lab.engine.remove_pod(pod.id, pod.group)
        await until(lambda: not lives(runs.started.pid))


@scenario
async def test_refused_pods_leave_nothing(lab: Lab) -> None:
    for sysctls in ({"kernel.no_such_thing": "1"}, {"kernel.shm_rmid_forced": "no number"}):
        with pytest.raises(CrishimError, match=r"sysctl kernel/"):
            async with lab.pod(sysctls=sysctls):
                pass
    assert os.listdir(lab.paths.pods) == []
    assert os.listdir(lab.paths.namespaces) == []
    parents = lab.layout.directories(lab.config.cgroup_parent)
    assert {name for d in parents for name in os.listdir(d) if os.path.isdir(f"{d}/{name}")} == {"keepers"}


@scenario
async def test_namespaces_of_pods(lab: Lab) -> None:
    host = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE))
    script = "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname; cat /proc/sys/kernel/shm_rmid_forced"
    own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts")]
    async with lab.pod(security=host) as pod:
        assert os.listdir(lab.paths.namespaces) == []
        out, _, _ = await pod.complete(script)
        assert out.split("\n")[:4] == [*own, os.uname().nodename]
    async with lab.pod(hostname="inside", sysctls={"kernel.shm_rmid_forced": "1"}) as pod:
        seen = [(await pod.complete(script))[0].split("\n") for _ in range(2)]
        assert seen[0] == seen[1]  # the pod's containers share them
        assert seen[0][3:5] == ["inside", "1"]
        assert not set(seen[0]) & set(own)
        pin = os.stat(lab.paths.pinned_netns(pod.id))
        assert f"net:[{pin.st_ino}]" == seen[0][0]


@scenario
async def test_containers_share_memory(lab: Lab) -> None:
    async with lab.pod() as pod, lab.pod() as other:
        await pod.complete("echo shared > /dev/shm/file; stat -f -c %T /dev/shm")
        security = ContainerSecurity(run_as_user=1000)
        assert (await pod.complete("cat /dev/shm/file", security=security))[0] == "shared\n"
        assert (await other.complete("cat /dev/shm/file"))[2] == 1
        assert not os.path.exists("/dev/shm/file")


@scenario
async def test_keepers_hold_no_library_of_the_daemon(lab: Lab) -> None:
    async with lab.pod() as pod:
        for pid in (pod.keeper.pid, lab.engine.spawner_pid):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
            for word in ("grpc", "protobuf", "google", "sqlite", "_asyncio", "_ssl", "isal"):
                assert word not in maps
            assert "memfd:crishim-python" in maps or "python" in maps
            assert Path(f"/proc/{pid}/oom_score_adj").exists()


@scenario
async def test_keeper_refuses_what_it_does_not_know(lab: Lab) -> None:
    async with lab.pod() as pod:
        sock = wire.connect(lab.paths.pod(pod.id), "keeper.sock")
        sock.settimeout(20)
        try:
            hello, _ = wire.receive(sock)
            assert (hello["event"], hello["pod"], hello["pid"]) == ("hello", pod.id, pod.keeper.pid)
            for request in ({"op": "dance"}, {}, {"op": "signal"}, {"op": "start", "plan": {}}, {"op": "exec"}):
                wire.send(sock, {"n": 1, **request})
                answer, _ = wire.receive(sock)
                assert answer["error"]["message"]
            sock.send(b"{no json")
            wire.send(sock, {"n": 2, "op": "signal", "container": "none", "signal": 9})
            assert wire.receive(sock)[0] == {"n": 2, "sent": False}
        finally:
            sock.close()
        assert (await pod.complete("echo fine"))[0] == "fine\n"
