"""ExecSync: outputs, bounds, deadlines, and many at once."""

import asyncio
import contextlib

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim.engine.capture import ASSURED
from crishim.linux.cgroups import apply
from crishim.linux.facts import probe
from tests.support import layout
from tests.support.cri import attempt, refused
from tests.support.world import World

STAY = "trap 'exit 0' TERM; while :; do usleep 50000; done"
MOST = 16 << 20


async def test_streams_and_code_are_told_apart(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    reply = await world.cri.exec(container, "sh", "-c", "printf out; printf err >&2; exit 42")
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out", b"err", 42)


async def test_fifty_at_once_each_return_their_own_code(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    calls = [world.cri.exec(container, "sh", "-c", f"echo {n}; exit {n}") for n in range(50)]
    replies = await asyncio.gather(*calls)
    assert [(reply.exit_code, reply.stdout) for reply in replies] == [(n, f"{n}\n".encode()) for n in range(50)]


async def test_output_beyond_the_bound_is_dropped_and_the_code_is_kept(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    reply = await world.cri.exec(container, "sh", "-c", "head -c 100000000 /dev/zero; exit 9")
    assert reply.exit_code == 9
    assert 1 << 20 < len(reply.stdout) <= MOST
    assert reply.ByteSize() <= MOST


async def test_endless_output_ends_with_the_timeout_and_its_processes(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    details = await refused(world.cri.exec(container, "yes", seconds=1), grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "1" in details
    assert "yes" not in (await world.cri.output(container, "ps", "-o", "comm")).split()


async def test_a_timeout_ends_the_whole_tree(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    tree = "sleep 621 & sh -c 'sleep 622 & sleep 623' & wait"
    await refused(world.cri.exec(container, "sh", "-c", tree, seconds=1), grpc.StatusCode.DEADLINE_EXCEEDED)
    left = await world.cri.output(container, "ps", "-o", "args")
    assert not [line for line in left.splitlines() if line.startswith("sleep 62")]


DAEMON = "setsid sh -c 'setsid sleep {0} & exec setsid sleep {0}' & (setsid sh -c 'sleep {0} & sleep {0}' &); "


async def test_a_timeout_ends_what_left_its_parent_and_its_session(world: World) -> None:
    pod = await world.pod()
    for security in ({}, {"namespace_options": {"pid": 1}}):
        container = await world.run(pod, STAY, security=security)
        await refused(
            world.cri.exec(container, "sh", "-c", DAEMON.format(641) + "sleep 641", seconds=1),
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
        left = await world.cri.output(container, "ps", "-o", "args")
        assert not [line for line in left.splitlines() if line.startswith("sleep 641")]


async def test_what_starts_processes_without_end_ends_with_the_timeout(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    spring = "for n in 1 2 3; do (setsid sh -c 'while :; do (setsid usleep 30000 &) done' &) done; sleep 651"
    await refused(world.cri.exec(container, "sh", "-c", spring, seconds=1), grpc.StatusCode.DEADLINE_EXCEEDED)
    left = (await world.cri.output(container, "ps", "-o", "args")).splitlines()
    assert not [line for line in left if line.startswith(("sleep 651", "sh -c for", "sh -c while", "usleep 30000"))]


async def test_what_outlives_its_program_belongs_to_the_container(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    reply = await world.cri.exec(container, "sh", "-c", "(setsid sleep 661 &); exit 3", seconds=60)
    assert reply.exit_code == 3
    assert "sleep 661" in await world.cri.output(container, "ps", "-o", "args")


async def test_a_caller_that_goes_away_takes_its_program_along(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    request = api.ExecSyncRequest(container_id=container, cmd=["sleep", "631"], timeout=600)
    _, error = await attempt(world.cri.runtime.ExecSync(request, timeout=0.5))
    assert error is not None
    for _ in range(100):
        if "sleep 631" not in await world.cri.output(container, "ps", "-o", "args"):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the program lives on without its caller")


async def test_an_exec_ends_with_its_container(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    running = asyncio.create_task(attempt(world.cri.exec(container, "sleep", "600")))
    while "sleep" not in await world.cri.output(container, "ps", "-o", "comm"):
        await asyncio.sleep(0.02)
    await world.cri.stop(container)
    reply, error = await running
    assert error is not None or (reply is not None and reply.exit_code == 137)


async def test_an_orphan_that_keeps_the_pipes_does_not_hold_the_answer_for_ever(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    reply, error = await attempt(world.cri.exec(container, "sh", "-c", "sleep 3 & echo parent; exit 6", seconds=60))
    assert error is None
    assert reply is not None
    assert (reply.exit_code, reply.stdout) == (6, b"parent\n")


async def test_exec_needs_a_running_container_and_a_command(world: World) -> None:
    pod = await world.pod()
    over = await world.run(pod, "exit 0")
    await world.cri.wait_exit(over)
    await refused(world.cri.exec(over, "true"), grpc.StatusCode.FAILED_PRECONDITION)
    await refused(world.cri.exec("f" * 64, "true"), grpc.StatusCode.NOT_FOUND)
    running = await world.run(pod, STAY)
    assert "cmd" in await refused(world.cri.exec(running), grpc.StatusCode.INVALID_ARGUMENT)


FILES = [
    layout.Entry("bin/unreadable", b"\x7fELF", 0o644),
    layout.Entry("bin/text", b"neither a script nor a program", 0o755),
    layout.Entry("bin/orphan", b"#!/no/such/interpreter\n", 0o755),
]
REFUSALS = {
    ("/bin/nope",): (127, "exec /bin/nope: no such file or directory"),
    ("nope",): (127, "exec nope: executable file not found in $PATH"),
    ("orphan",): (127, "exec orphan: its interpreter"),
    ("unreadable",): (126, "exec unreadable: permission denied (not executable)"),
    ("/bin/unreadable",): (126, "exec /bin/unreadable: permission denied"),
    ("/etc",): (126, "exec /etc: is a directory"),
    ("text",): (126, "exec text: exec format error"),
    ("/bin/text/nope",): (126, "exec /bin/text/nope: not a directory"),
}


async def test_a_program_that_cannot_run_is_an_exit_code_as_for_a_shell(world: World) -> None:
    image = await world.make_image("refusals", FILES)
    pod = await world.pod()
    for security in ({}, {"capabilities": {"add_capabilities": ["SYS_PTRACE"]}}):
        container = await world.run(pod, STAY, image=image, security=security)
        for command, (code, sentence) in REFUSALS.items():
            reply = await world.cri.exec(container, *command)
            assert (reply.exit_code, reply.stdout) == (code, b"")
            assert reply.stderr.decode().startswith(sentence)
            assert reply.stderr.endswith(b"\n")
        await world.cri.remove(container)


async def test_what_the_container_did_to_itself_is_its_own_fault(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, STAY, working_dir="/work")
    script = "rmdir /work; echo > /work"
    assert (await world.cri.exec(container, "sh", "-c", script)).exit_code == 0
    reply = await world.cri.exec(container, "true")
    assert (reply.exit_code, reply.stderr) == (126, b"working directory /work: is a file\n")
    image = await world.make_image(
        "named", [layout.Entry("etc/passwd", b"app:x:7:7::/:/bin/sh\n", 0o666)], {"User": "app"}
    )
    named = await world.run(pod, STAY, image=image)
    assert (await world.cri.exec(named, "sh", "-c", "echo > /etc/passwd")).exit_code == 0
    reply = await world.cri.exec(named, "true")
    assert reply.exit_code == 126
    assert reply.stderr.startswith(b"user app: ")


async def test_no_zombie_stays_after_many(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    for _ in range(10):
        await asyncio.gather(*(world.cri.exec(container, "sh", "-c", "sleep 0 & true") for _ in range(10)))
    for _ in range(50):  # the last orphan may be on its way to its reaper
        states = (await world.cri.output(container, "ps", "-o", "stat")).split()
        if not any(state.startswith("Z") for state in states):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"zombies stay: {states}")


def memory(world: World) -> int:
    """Return the bytes that the daemon, the spawner and the keepers hold for themselves."""
    total = 0
    pids = [world.instance.pid, *apply.pids(probe().layout.directories(f"{world.instance.cgroup_parent}/keepers"))]  # type: ignore[union-attr]
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


def peak(world: World) -> int:
    """Return the most that the daemon has held."""
    with open(f"/proc/{world.instance.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


async def test_the_memory_of_large_outputs_is_bounded_and_given_back(own_world: World) -> None:
    world = own_world
    container = await world.run(await world.pod(), STAY)
    await world.cri.exec(container, "head", "-c", "1000000", "/dev/zero")
    before = memory(world)
    # half of them leave a process behind that keeps the pipes
    scripts = [f"{'sleep 671 &' * (n % 2)} head -c 30000000 /dev/zero; exit {n}" for n in range(40)]
    replies = await asyncio.gather(*(world.cri.exec(container, "sh", "-c", script) for script in scripts))
    assert [reply.exit_code for reply in replies] == list(range(40))
    assert all(ASSURED <= len(reply.stdout) <= MOST for reply in replies)
    del replies
    assert peak(world) - before < 600 << 20
    for _ in range(300):
        if memory(world) - before < 100 << 20:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{(memory(world) - before) >> 20} MiB are held at idle")


async def test_a_small_output_is_whole_while_large_ones_take_all_there_is(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    large = [
        asyncio.create_task(world.cri.exec(container, "sh", "-c", "head -c 30000000 /dev/zero; sleep 2"))
        for _ in range(8)
    ]
    await asyncio.sleep(1)
    assert await world.cri.output(container, "sh", "-c", "seq 1 10000") == "".join(f"{n}\n" for n in range(1, 10_001))
    sizes = [len((await call).stdout) for call in large]
    assert sum(sizes) <= (64 << 20) + len(large) * ASSURED
