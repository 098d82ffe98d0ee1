"""ExecSync over the real engine: codes, bounds, trees, orphans, many at once, and ends in the middle."""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.client import SPARES, StartError
from crishim.errors import CrishimError, DeadlineExceededError
from crishim.linux import calls
from crishim.linux.cgroups import apply
from crishim.request import Capabilities, ContainerSecurity, ImageConfig
from tests.support.lab import OWN_PID, Container, Lab, Pod, lives, open_lab, scenario, until


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


async def idle(pod: Pod) -> Container:
    return await pod.run("/bin/sleep", "600")


def members(container: Container) -> list[int]:
    return apply.pids(container.plan.cgroup.directories)


@scenario
async def test_streams_and_codes(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        assert await pod.exec(container, "echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", 3)
        assert await pod.exec(container, "kill -KILL $$") == (b"", b"", 137)
        assert await pod.exec(container, "cat; echo end") == (b"end\n", b"", 0)  # stdin is empty
        binary = bytes(range(256))
        out, _, _ = await pod.exec(container, "".join(["printf '", *(f"\\{n:03o}" for n in binary), "'"]))
        assert out == binary


@scenario
async def test_output_is_bounded_and_drained(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        limit = 1 << 20
        out, err, code = await pod.exec(container, "yes | head -c 100000000; exit 5", limit=limit)
        assert (len(out), err, code) == (limit, b"", 5)
        results = await asyncio.gather(
            *(pod.exec(container, "yes | head -c 5000000; echo e >&2", limit=1000) for _ in range(10))
        )
        assert {(len(out), code) for out, _, code in results} == {(1000, 0)}
        out, err, _ = await pod.exec(container, "head -c 600 /dev/zero; head -c 600 /dev/zero >&2; true", limit=1000)
        assert len(out) + len(err) == 1000  # both streams together
        out, _, _ = await pod.exec(container, "seq 1 200000")
        assert out == b"".join(b"%d\n" % n for n in range(1, 200_001))


@scenario
async def test_timeout_kills_the_tree(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        script = "sleep 600 & setsid sleep 600 & (setsid sh -c 'sleep 600 & wait' &) ; yes > /dev/null & wait"
        with pytest.raises(DeadlineExceededError, match="did not end within"):
            await pod.exec(container, script, timeout=0.3)
        await until(lambda: b"yes" not in names(container))
        await until(lambda: members(container) == [container.started.pid])
        assert (await pod.exec(container, "exit 4"))[2] == 4


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def names(container: Container) -> bytes:
    return b" ".join(map(command, members(container)))


@scenario
async def test_timeout_before_the_program_runs(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        for timeout in (1e-9, 0.001, 0.003):
            with pytest.raises(DeadlineExceededError):
                await pod.exec(container, "sleep 600", timeout=timeout)
        await until(lambda: members(container) == [container.started.pid])


@scenario
async def test_caller_that_leaves(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        call = asyncio.ensure_future(pod.exec(container, "sleep 600 & yes > /dev/null"))
        await until(lambda: b"yes" in names(container))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: members(container) == [container.started.pid])


@scenario
async def test_orphan_does_not_hold_the_answer(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        await until(lambda: lab.engine.spares == SPARES)  # each is a descriptor of ours
        descriptors = len(os.listdir("/proc/self/fd"))
        out, _, code = await pod.exec(container, "sleep 600 & echo started")
        assert (out, code) == (b"started\n", 0)
        # one that writes without end neither: neither the answer nor the daemon's loop waits for it
        out, _, code = await pod.exec(container, "yes & echo started; exit 2", limit=100)
        assert code == 2
        assert out.startswith(b"started\n") or set(out) <= set(b"started\ny")
        await asyncio.sleep(0)
        assert b"yes" in names(container)  # it got no SIGPIPE
        await pod.exec(container, "killall yes sleep")
        await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


@scenario
async def test_many_at_once(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)
        codes = [n % 7 for n in range(50)]
        results = await asyncio.gather(*(pod.exec(container, f"echo {n}; exit {n}") for n in codes))
        assert results == [(b"%d\n" % n, b"", n) for n in codes]
        await until(lambda: members(container) == [container.started.pid])


@scenario
async def test_end_of_the_container_ends_its_execs(lab: Lab) -> None:
    async with lab.pod() as pod:
        for security in (ContainerSecurity(namespaces=OWN_PID), ContainerSecurity()):
            container = await pod.run("/bin/sleep", "600", security=security)
            running = [asyncio.ensure_future(pod.exec(container, "echo up; exec sleep 600")) for _ in range(5)]
            await until(lambda c=container: names(c).count(b"sleep\0") == 6)  # type: ignore[misc]
            os.kill(container.started.pid, signal.SIGKILL)
            results = await asyncio.gather(*running)
            assert {code for _, _, code in results} == {137}
            assert (await pod.ended(container)).exit_code == 137
            with pytest.raises(StartError, match="the container does not run"):
                await pod.exec(container, "true")


@scenario
async def test_zombies_are_reaped(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await idle(pod)  # a process 1 that never waits
        for _ in range(5):
            await pod.exec(container, "true & (sleep 0.01 &) ; exit 0")
        assert (await pod.exec(container, "exit 6"))[2] == 6
        zombies = [pid for pid in children(pod.keeper.pid) if not lives(pid)]
        assert zombies == []


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@scenario
async def test_large_environment_goes_by_memfd(lab: Lab) -> None:
    # the plan is far over what one packet may hold
    variables = tuple(f"V{n}={'x' * 1000}" for n in range(300))
    image = ImageConfig(env=("PATH=/bin", *variables))
    async with lab.pod() as pod:
        container = await pod.run("env | grep -c ^V; exec sleep 600", image=image)
        await pod.logged(container, b"300")
        assert (await pod.exec(container, "env | grep -c ^V"))[0] == b"300\n"


@scenario
async def test_keeper_and_daemon_stay_as_they_were(lab: Lab) -> None:
    def descriptors(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    def private() -> int:
        lines = Path(f"/proc/{pod.keeper.pid}/smaps_rollup").read_text(encoding="ascii").split("\n")
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    async with lab.pod() as pod:
        container = await idle(pod)

        async def round_of(count: int) -> None:
            for _ in range(count // 10):
                await asyncio.gather(*(pod.exec(container, "/bin/true", "") for _ in range(9)))
                with pytest.raises(StartError) as caught:
                    await pod.exec(container, "/bin/nope", "")
                assert caught.value.inside

        await until(lambda: lab.engine.spares == SPARES)  # each is a descriptor of ours
        before = descriptors(os.getpid()), descriptors(pod.keeper.pid)
        await round_of(100)
        kilobytes = private()
        await round_of(200)
        await until(lambda: (descriptors(os.getpid()), descriptors(pod.keeper.pid)) == before)
        # 200 forgotten plans alone would be 1,000 kB: nothing of an exec may stay behind
        assert private() - kilobytes < 300
        assert children(pod.keeper.pid) == [container.started.pid]


@scenario
async def test_keeper_that_dies_ends_the_call(lab: Lab) -> None:
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
    async with lab.pod() as pod:
        container = await idle(pod)
        call = asyncio.ensure_future(pod.exec(container, "sleep 600"))
        await until(lambda: len(members(container)) == 2)
        (running,) = set(members(container)) - {container.started.pid}
        os.kill(pod.keeper.pid, signal.SIGKILL)
        try:
            assert (await call)[2] == 137
        except CrishimError as error:
            assert "keeper" in str(error)  # noqa: PT017  either is a true answer
        # the container's process 1 cannot end before what fell to this process from the keeper is reaped
        apply.kill(container.plan.cgroup.directories, lab.layout.version)
        await until(lambda: container.started.pid in children(os.getpid()))
        for pid in (running, container.started.pid):
            with contextlib.suppress(ChildProcessError):  # the keeper itself was first
                os.waitpid(pid, 0)
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 0)


@scenario
async def test_execs_that_are_screened_from_a_tracer(lab: Lab) -> None:
    """With CAP_SYS_PTRACE around, a second process goes on inside; nobody can tell the difference."""
    rights = ContainerSecurity(capabilities=Capabilities(add=("SYS_PTRACE",)))
    async with lab.pod() as pod:
        for security in (rights, dataclasses.replace(rights, namespaces=OWN_PID)):
            container = await pod.run("/bin/sleep", "600", security=security)
            codes = [n % 7 for n in range(50)]
            results = await asyncio.gather(*(pod.exec(container, f"echo {n}; exit {n}") for n in codes))
            assert results == [(b"%d\n" % n, b"", n) for n in codes]
            for timeout in (1e-9, 0.001, 0.002, 0.003, 0.004, 0.005, 0.3):
                with pytest.raises(DeadlineExceededError):
                    await pod.exec(container, "sleep 600 & sleep 600", timeout=timeout)
            with pytest.raises(StartError, match="exec nope: executable file not found"):
                await pod.exec(container, "nope", "")
            out, _, _ = await pod.exec(
                container, "cut -d' ' -f1,6 /proc/self/stat; echo $$; cat /proc/self/oom_score_adj"
            )
            assert out.split()[1] == out.split()[2]  # its own session's leader
            await until(lambda c=container: members(c) == [c.started.pid])  # type: ignore[misc]
            call = asyncio.ensure_future(pod.exec(container, "exec sleep 600"))
            await until(lambda c=container: names(c).count(b"sleep\0") == 2)  # type: ignore[misc]
            await pod.keeper.signal(container.id, signal.SIGKILL)
            assert (await call)[2] == 137
            assert (await pod.ended(container)).exit_code == 137
            assert (await pod.complete("exit 4", security=security))[2] == 4
        await until(lambda: not any(not lives(pid) for pid in children(pod.keeper.pid)))
