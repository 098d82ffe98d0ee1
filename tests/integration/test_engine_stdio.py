"""Terminals, standard input and log files over the real engine: rotation, full disks, long lines, last words."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.client import StartError
from crishim.linux import calls
from crishim.request import ContainerSecurity, Mount
from tests.support.lab import Lab, joined, open_lab, records, scenario, until


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) [PF] ")


# --- terminals ------------------------------------------------------------------------------------


@scenario
async def test_terminal(lab: Lab) -> None:
    async with lab.pod() as pod:
        script = "tty; echo $TERM; echo err >&2; ls -l /dev/console /dev/tty; cut -d' ' -f7 /proc/self/stat; exit 4"
        container = await pod.run(script, tty=True)
        assert (await pod.ended(container)).exit_code == 4
        lines = container.output().replace(b"\r\n", b"\n").split(b"\n")
        assert lines[:3] == [b"/dev/pts/0", b"xterm", b"err"]
        assert b"136," in lines[3].replace(b" ", b"")  # /dev/console is the terminal itself, a pts
        assert int(lines[5]) == os.makedev(136, 0)  # and it controls the session
        assert container.output("stderr") == b""


@scenario
async def test_terminal_loses_nothing_at_its_end(lab: Lab) -> None:
    async with lab.pod() as pod:
        for n in range(20):
            container = await pod.run(f"echo last words {n}", tty=True)
            await pod.ended(container)
            assert container.output() == b"last words %d\r\n" % n
        container = await pod.run("seq 1 20000", tty=True)
        await pod.ended(container)
        assert container.output() == b"".join(b"%d\r\n" % n for n in range(1, 20_001))


@scenario
async def test_terminal_of_another_user(lab: Lab) -> None:
    async with lab.pod() as pod:
        security = ContainerSecurity(run_as_user=1000)
        container = await pod.run("echo x > /dev/tty; echo y > /dev/stdout", tty=True, security=security)
        await pod.ended(container)
        assert container.output().startswith(b"x\r\ny\r\n")


@scenario
async def test_terminal_needs_devpts(lab: Lab) -> None:
    async with lab.pod() as pod:
        os.makedirs(f"{lab.directory}/pts", exist_ok=True)
        mounts = (Mount("/dev/pts", f"{lab.directory}/pts"),)
        with pytest.raises(StartError, match="a mount of the request covers /dev/pts"):
            await pod.run("true", tty=True, mounts=mounts)


# --- standard input -------------------------------------------------------------------------------


@scenario
async def test_standard_input(lab: Lab) -> None:
    async with lab.pod() as pod:
        closed = await pod.run("cat; echo end")
        assert (await pod.ended(closed)).exit_code == 0
        assert closed.output() == b"end\n"
        # with stdin asked for, the pipe stays open for whoever will attach
        waits = await pod.run("echo up; cat; echo end", stdin=True)
        await pod.logged(waits, b"up")
        assert waits.output() == b"up\n"
        assert (await pod.exec(waits, "readlink /proc/1/fd/0"))[0].startswith(b"pipe:")
        await pod.keeper.kill(waits.id)
        assert (await pod.ended(waits)).exit_code == 137


# --- logs -----------------------------------------------------------------------------------------


@scenario
async def test_records_of_both_streams(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("printf 'a\\r\\000b\\377\\nlast'; printf '\\nerr\\n' >&2")
        await pod.ended(container)
        assert [r for r in container.records() if r[0] == "stdout"] == [
            ("stdout", "F", b"a\r\0b\xff"),
            ("stdout", "P", b"last"),
        ]
        assert [r for r in container.records() if r[0] == "stderr"] == [("stderr", "F", b""), ("stderr", "F", b"err")]
        for line in Path(container.log).read_bytes().split(b"\n")[:-1]:
            assert STAMP.match(line)


@scenario
async def test_long_lines(lab: Lab) -> None:
    async with lab.pod() as pod:
        for size in (16_383, 16_384, 16_385, 200_000):
            container = await pod.run(f"head -c {size} /dev/zero | tr '\\0' x; echo; printf tail")
            await pod.ended(container)
            found = container.records()
            assert joined(found) == b"x" * size + b"\ntail"
            assert max(len(text) for _, _, text in found) <= 16_384
            assert [tag for _, tag, _ in found] == ["P"] * ((size - 1) // 16_384) + ["F", "P"]


@scenario
async def test_last_words_of_a_killed_container(lab: Lab) -> None:
    async with lab.pod() as pod:
        for security in (None, ContainerSecurity()):
            container = await pod.run("printf hi; kill -9 $$; sleep 600 & exit 3", security=security)
            await pod.ended(container)
            assert container.records()[0] == ("stdout", "P", b"hi")


@scenario
async def test_rotation_under_load(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("seq 1 800000 & seq 1 1000 >&2; wait")
        kept = []
        for n in range(100):
            os.rename(container.log, f"{container.log}.{n}")
            kept.append(f"{container.log}.{n}")
            try:
                await pod.keeper.reopen_log(container.id)
            except StartError:  # it has ended in between
                assert not os.path.exists(container.log)
                break
            assert os.path.exists(container.log)
            await asyncio.sleep(0.003)
        else:
            kept.append(container.log)
        await pod.ended(container)
        found = []
        for path in kept:
            data = Path(path).read_bytes()
            assert not data or STAMP.match(data)
            found += records(path)
            os.unlink(path)
        assert joined(found) == b"".join(b"%d\n" % n for n in range(1, 800_001))
        assert joined(found, "stderr") == b"".join(b"%d\n" % n for n in range(1, 1001))


@scenario
async def test_reopen_without_a_container_makes_no_file(lab: Lab) -> None:
    async with lab.pod() as pod:
        container = await pod.run("true")
        await pod.ended(container)
        os.unlink(container.log)
        for identifier in (container.id, "0" * 64):
            with pytest.raises(StartError, match="the container does not run"):
                await pod.keeper.reopen_log(identifier)
        assert not os.path.exists(container.log)


@scenario
async def test_reopen_that_fails_keeps_the_old_file(lab: Lab) -> None:
    async with lab.pod() as pod:
        folder = f"{lab.directory}/logs/folder"
        os.mkdir(folder)
        container = await pod.run(
            "trap 'echo two; exit' TERM; echo one; while :; do sleep 0.01; done", log=f"{folder}/log"
        )
        await pod.logged(container, b"one")
        os.rename(folder, f"{folder}.moved")
        with pytest.raises(StartError, match="no such file or directory"):
            await pod.keeper.reopen_log(container.id)
        await pod.keeper.signal(container.id, 15)
        await pod.ended(container)
        assert joined(records(f"{folder}.moved/log")) == b"one\ntwo\n"


@scenario
async def test_full_disk_never_holds_a_container_up(lab: Lab) -> None:
    place = f"{lab.directory}/small"
    os.mkdir(place)
    calls.mount("tmpfs", place, "tmpfs", 0, "size=1m")
    try:
        async with lab.pod() as pod:
            script = "seq 1 400000; echo done > /tmp/done; trap 'echo freed; exit 6' TERM; while :; do sleep 0.01; done"
            container = await pod.run(script, log=f"{place}/log")
            await until(lambda: os.path.exists(f"{container.plan.root.upper}/tmp/done"))
            found = records(container.log)  # whole records only, in order
            numbers = joined(found).split()
            assert 0 < len(numbers) < 400_000
            assert [int(n) for n in numbers] == sorted({int(n) for n in numbers})
            os.truncate(container.log, 0)  # space again: what comes now is kept
            await pod.keeper.signal(container.id, 15)
            assert (await pod.ended(container)).exit_code == 6
            assert joined(records(container.log)).endswith(b"freed\n")
    finally:
        calls.umount(place, calls.MNT_DETACH)


@scenario
async def test_hostile_log_targets(lab: Lab) -> None:
    async with lab.pod() as pod:
        target = Path(lab.directory, "precious")
        target.write_text("precious", encoding="ascii")
        link = f"{lab.directory}/logs/link"
        os.symlink(target, link)
        with pytest.raises(StartError):
            await pod.run("echo x", log=link)
        assert target.read_text(encoding="ascii") == "precious"
        container = await pod.run("echo dropped", log="")
        assert (await pod.ended(container)).exit_code == 0


@scenario
async def test_pipe_that_somebody_else_holds(lab: Lab) -> None:
    """A container's end does not wait for one outside that was handed its output."""
    async with lab.pod() as pod:
        security = ContainerSecurity()
        other = await pod.run("exec sleep 600", security=security)
        writer = await pod.run("echo $$ up; exec sleep 600", security=security)
        await pod.logged(writer, b"up")
        inside = writer.output().split()[0].decode()
        # in its own control group, outside of the writer's, with the writer's pipe open
        await pod.exec(other, f"yes > /proc/{inside}/fd/1 & echo $!")
        await pod.keeper.kill(writer.id)
        assert (await pod.ended(writer)).exit_code == 137
