"""The spawner: it dies and is replaced, its children are no burden, and it runs from a copy that nobody can write."""

import asyncio
import dataclasses
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crishim.engine.plan.rehearsal import plan_rehearsal
from crishim.linux.cgroups.layout import Hierarchy
from tests.support.lab import Lab, lives, open_lab, scenario, until

pytestmark = pytest.mark.shared_mounts


@pytest.fixture
def lab(test_leaks: None) -> Iterator[Lab]:
    """Return an instance of the test's own: its spawner is killed."""
    yield from open_lab()


@scenario
async def test_dead_spawner_is_replaced(lab: Lab) -> None:
    first = lab.engine.spawner_pid
    os.kill(first, signal.SIGKILL)

    async def life() -> None:
        async with lab.pod() as pod:
            assert (await pod.complete("echo up"))[0] == "up\n"

    await asyncio.gather(*(life() for _ in range(4)))
    assert lab.engine.spawner_pid != first
    assert not lives(first)
    rows = Path("/proc/self/task", str(os.getpid()), "children").read_text(encoding="ascii").split()
    spawners = [pid for pid in rows if Path(f"/proc/{pid}/comm").read_text(encoding="ascii") == "crishim-spawner\n"]
    assert spawners == [str(lab.engine.spawner_pid)]


@scenario
async def test_spawner_that_dies_between_two_pods(lab: Lab) -> None:
    async with lab.pod() as first:
        container = await first.run("exec sleep 600")
        os.kill(lab.engine.spawner_pid, signal.SIGKILL)
        async with lab.pod() as second:
            assert (await second.complete("echo up"))[0] == "up\n"
        # the first pod's keeper needs no spawner
        assert (await first.exec(container, "exit 3"))[2] == 3
        assert (await first.complete("exit 4"))[2] == 4


CHANGES: dict[str, tuple[int, Callable[[int], object]]] = {
    "write": (os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "append": (os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "write in place": (os.O_RDWR, lambda fd: os.pwrite(fd, b"x", 0)),
    "shrink": (os.O_RDWR, lambda fd: os.ftruncate(fd, 0)),
    "grow": (os.O_RDWR, lambda fd: os.ftruncate(fd, 1 << 30)),
    "truncate at open": (os.O_WRONLY | os.O_TRUNC, lambda _fd: None),
    "map": (os.O_RDWR, lambda fd: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)),
}


@scenario
async def test_nothing_can_write_to_the_interpreter(lab: Lab) -> None:
    async with lab.pod() as pod:
        held = [os.open(f"/proc/{pid}/exe", os.O_RDONLY) for pid in (lab.engine.spawner_pid, pod.keeper.pid)]
    await lab.engine.close()
    # as CVE-2019-5736 did it: by an fd that was opened before, when nothing runs from the file and it is not busy.
    # A read-only bind refuses the open, a sealed memfd the change: what counts is that each change is refused.
    refusals = r"Read-only file system|Operation not permitted|Text file busy"
    try:
        for fd in held:
            before = os.pread(fd, 1 << 26, 0)
            for flags, change in CHANGES.values():
                with pytest.raises(OSError, match=refusals):
                    _change(f"/proc/self/fd/{fd}", flags, change)
            with pytest.raises(OSError, match=refusals):
                os.truncate(f"/proc/self/fd/{fd}", 1 << 30)
            assert os.pread(fd, 1 << 26, 0) == before
    finally:
        for fd in held:
            os.close(fd)


def _change(path: str, flags: int, change: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        change(fd)
    finally:
        os.close(fd)


@scenario
async def test_ended_keepers_are_reaped(lab: Lab) -> None:
    for _ in range(3):
        async with lab.pod() as pod:
            pid = pod.keeper.pid
        await until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))  # type: ignore[misc]


@scenario
async def test_every_file_that_the_engine_maps_is_on_a_read_only_mount(lab: Lab) -> None:
    async with lab.pod() as pod:
        for pid in (lab.engine.spawner_pid, pod.keeper.pid):
            held = {}
            for entry in Path(f"/proc/{pid}/map_files").iterdir():
                target = os.readlink(entry)
                if target.startswith("/") and not target.startswith(("/memfd:", "/dev/zero")):
                    fd = os.open(entry, os.O_RDONLY)  # never for writing: these are the host's files
                    held[target] = os.fstatvfs(fd).f_flag & os.ST_RDONLY
                    os.close(fd)
            assert any("/libc" in path for path in held)
            assert [path for path, read_only in held.items() if not read_only] == []
            # it has returned: the host's mounts are what it sees and works on
            assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
            assert os.path.samefile(f"/proc/{pid}/root", "/")
            for link in ("root", "cwd"):
                fd = os.open(f"/proc/{pid}/{link}", os.O_PATH)
                mine = os.open("/", os.O_PATH)
                assert mount_id(fd) == mount_id(mine)
                os.close(fd)
                os.close(mine)


def mount_id(fd: int) -> str:
    return next(
        line for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").split("\n") if "mnt_id" in line
    )


@pytest.mark.parametrize("place", ["pods/rehearsal/shm", "pods/rehearsal/busy"])
@scenario
async def test_a_rehearsal_that_cannot_clean_up_ends_nothing(lab: Lab, place: str) -> None:
    """What a killed spawner left mounted goes (shm, before Linux 6.15); what resists is reported, and pods start."""
    spawner = lab.engine.spawner_pid
    async with lab.pod():
        pass  # the first rehearsal is over
    point = Path(lab.paths.rehearsal, place)
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "left", point], check=True)
    try:
        lab.engine.warm_up(*plan_rehearsal(lab.planner.settings))
        for _ in range(2):  # a pod's keeper, or the spare one that its pod gets, is forked after the rehearsal
            async with lab.pod() as pod:
                assert (await pod.complete("echo up"))[0] == "up\n"
        assert lab.engine.spawner_pid == spawner
        assert lives(spawner)
        assert os.path.ismount(point) == place.endswith("busy")
    finally:
        while os.path.ismount(point):
            subprocess.run(["umount", point], check=True)


@scenario
async def test_where_a_hierarchy_of_systemds_cannot_be_written_it_is_left_out(lab: Lab) -> None:
    await lab.engine.close()
    hierarchies = (*lab.layout.watchers, Hierarchy("/proc/self/task", ()))  # nobody makes a directory there
    lab.layout = dataclasses.replace(lab.layout, watchers=hierarchies)
    lab.engine = lab.new_engine()
    await lab.engine.start()
    try:
        async with lab.pod() as pod:
            assert (await pod.complete("echo up"))[0] == "up\n"
    finally:
        lab.layout = dataclasses.replace(lab.layout, watchers=hierarchies[:-1])
