"""The CRI log: every byte, in order, whatever the program writes and wherever the file lies."""

import asyncio
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.configs import pod_config
from tests.support.cri import attempt, log_records, log_text, refused
from tests.support.world import Pod, World

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d)")
WHOLE = 16384
"""Longest record in the field; a longer line is cut into P records and one F."""


async def test_a_long_line_without_its_end_is_cut_into_partial_records(world: World) -> None:
    pod = await world.pod()
    await world.once("head -c 200000 /dev/zero | tr '\\0' x", pod=pod, name="long")
    records = log_records(pod.log("long"))
    assert b"".join(content for *_, content in records) == b"x" * 200_000
    assert {tag for _, _, tag, _ in records[:-1]} == {"P"}
    assert max(len(content) for *_, content in records) <= WHOLE


@pytest.mark.parametrize("size", [WHOLE - 1, WHOLE, WHOLE + 1, 3 * WHOLE])
async def test_lines_around_the_longest_record_are_whole_again(world: World, size: int) -> None:
    pod = await world.pod()
    await world.once(f"head -c {size} /dev/zero | tr '\\0' y; echo; echo next", pod=pod, name="edge")
    assert log_text(pod.log("edge")) == b"y" * size + b"\nnext\n"
    assert log_records(pod.log("edge"))[-1][2:] == ("F", b"next")


async def test_only_a_newline_ends_a_record_and_any_byte_is_kept(world: World) -> None:
    pod = await world.pod()
    odd = rb"a\0b\r\377\376\342\200\250c\x0b\x0c\xc2\x85d"
    await world.once(f"printf '{odd.decode()}\\n'", pod=pod, name="odd")
    assert log_text(pod.log("odd")) == b"a\0b\r\xff\xfe\xe2\x80\xa8c\x0b\x0c\xc2\x85d\n"
    assert len(log_records(pod.log("odd"))) == 1


async def test_streams_keep_their_order_while_the_other_writes(world: World) -> None:
    pod = await world.pod()
    script = "for n in 1 2 3 4 5; do printf o$n; echo e$n >&2; usleep 20000; printf 'O%s\\n' $n; done"
    await world.once(script, pod=pod, name="both")
    assert log_text(pod.log("both")) == b"".join(b"o%dO%d\n" % (n, n) for n in range(1, 6))
    assert log_text(pod.log("both"), "stderr") == b"e1\ne2\ne3\ne4\ne5\n"


async def test_stamps_are_rfc3339_with_nanoseconds_and_do_not_go_back(world: World) -> None:
    pod = await world.pod()
    await world.once("seq 1 2000", pod=pod, name="stamps")
    stamps = [stamp for stamp, *_ in log_records(pod.log("stamps"))]
    assert all(STAMP.fullmatch(stamp) for stamp in stamps)
    assert stamps == sorted(stamps)


async def test_last_words_without_a_newline_are_there_when_the_exit_is(world: World) -> None:
    assert (await world.once("printf hi")).stdout.rstrip("\n") == "hi"
    assert (await world.once("printf bye; kill -9 $$")).stdout.rstrip("\n") == "bye"


async def test_a_flood_is_complete(world: World) -> None:
    pod = await world.pod()
    await world.once("seq 1 300000", pod=pod, name="flood")
    assert log_text(pod.log("flood")) == "".join(f"{n}\n" for n in range(1, 300_001)).encode()


async def reopen(world: World, container: str) -> None:
    """ReopenContainerLog."""
    await world.cri.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container))


async def test_rotation_under_a_flood_loses_and_doubles_nothing(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, "seq 1 1500000", name="turn")
    files: list[str] = []
    while (await world.cri.status(container)).state == api.CONTAINER_RUNNING and len(files) < 40:
        files.append(f"{pod.log('turn')}.{len(files):03}")
        os.rename(pod.log("turn"), files[-1])
        _, error = await attempt(reopen(world, container))
        if error is not None:
            break
        assert os.path.exists(pod.log("turn"))
    await world.cri.wait_exit(container)
    parts = [log_text(path) for path in [*files, pod.log("turn")] if os.path.exists(path)]
    assert b"".join(parts) == "".join(f"{n}\n" for n in range(1, 1_500_001)).encode()
    assert len(files) > 1


async def test_a_log_is_reopened_only_while_its_container_runs(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, "exit 0", name="over")
    await world.cri.wait_exit(container)
    os.unlink(pod.log("over"))
    await refused(reopen(world, container), grpc.StatusCode.FAILED_PRECONDITION)
    assert not os.path.exists(pod.log("over"))
    await refused(reopen(world, "f" * 64), grpc.StatusCode.NOT_FOUND)


async def test_a_full_disk_drops_records_and_does_not_hold_the_program(world: World, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "logs", str(tmp_path)], check=True)
    try:
        pod = await in_directory(world, str(tmp_path))
        full = await world.run(pod, "seq 1 400000; exit 3", name="full")
        assert (await world.cri.wait_exit(full)).exit_code == 3
        assert 0 < os.path.getsize(pod.log("full")) <= 1 << 20
        container = await world.run(pod, "sleep 600", name="alive")
        assert await world.cri.output(container, "echo", "well") == "well\n"
        await world.cri.remove_pod(pod.id)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def in_directory(world: World, directory: str) -> Pod:
    """Run a pod that logs into a directory of the test's own."""
    config = pod_config("elsewhere", log_directory=directory)
    return Pod(await world.cri.run_pod(config), config)


async def test_a_log_path_that_climbs_out_is_refused_and_an_empty_one_means_none(world: World) -> None:
    pod = await world.pod()
    for path in ("../../outside.log", "/../outside.log", "a/../../outside.log"):
        config = world.config("echo x")
        config["log_path"] = path
        details = await refused(world.cri.create(pod.id, config, pod.config), grpc.StatusCode.INVALID_ARGUMENT)
        assert "log_path" in details
    config = world.config("echo into the void; exit 5")
    config["log_path"] = ""
    container = await world.cri.run(pod.id, config, pod.config)
    assert (await world.cri.wait_exit(container)).exit_code == 5


async def test_the_log_exists_when_start_returns_even_if_its_directory_did_not(world: World) -> None:
    pod = await world.pod()
    config = world.config("sleep 600")
    config["log_path"] = "web/0.log"
    await world.cri.run(pod.id, config, pod.config)
    assert os.path.exists(os.path.join(pod.config["log_directory"], "web", "0.log"))


async def test_a_log_that_is_a_link_to_a_file_of_the_host_is_not_followed(world: World, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("before\n")
    pod = await world.pod()
    os.makedirs(pod.config["log_directory"], exist_ok=True)
    os.symlink(victim, pod.log("link"))
    await attempt(world.once("echo after", pod=pod, name="link"))
    await asyncio.sleep(0)
    assert victim.read_text() == "before\n"


def make_fifo(path: str, _victim: Path) -> None:
    os.mkfifo(path)


def make_device(path: str, _victim: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))


def make_directory(path: str, _victim: Path) -> None:
    os.mkdir(path)


def make_link(path: str, victim: Path) -> None:
    os.symlink(victim, path)


def make_second_name(path: str, victim: Path) -> None:
    os.link(victim, path)


TRAPS: dict[str, Callable[[str, Path], None]] = {
    "is a FIFO": make_fifo,
    "is a device": make_device,
    "is a directory": make_directory,
    "a symbolic link is there": make_link,
    "has other names": make_second_name,
}


@pytest.fixture
def victim(world: World) -> Iterator[Path]:
    """Return a file on the logs' file system that no log may be written to."""
    path = Path(world.instance.base) / "victim"
    path.write_text("before\n")
    yield path
    assert path.read_text() == "before\n"
    path.unlink()


@pytest.mark.parametrize("words", TRAPS)
async def test_only_a_plain_file_becomes_a_log_at_the_start(world: World, victim: Path, words: str) -> None:
    pod = await world.pod()
    other = await world.run(pod, "sleep 600", name="other")
    TRAPS[words](pod.log("trap"), victim)
    container = await world.cri.create(pod.id, world.config("echo after", name="trap"), pod.config)
    details = await refused(world.cri.start(container), grpc.StatusCode.FAILED_PRECONDITION)
    assert words in details
    assert pod.log("trap") in details
    assert (await world.cri.status(container)).reason == "StartError"
    assert await world.cri.output(other, "echo", "well") == "well\n"  # the keeper waits for nobody


@pytest.mark.parametrize("words", TRAPS)
async def test_only_a_plain_file_becomes_a_log_at_its_rotation(world: World, victim: Path, words: str) -> None:
    pod = await world.pod()
    container = await world.run(pod, "sleep 600", name="turn")
    path = pod.log("turn")
    os.rename(path, f"{path}.1")
    TRAPS[words](path, victim)
    details = await refused(reopen(world, container), grpc.StatusCode.FAILED_PRECONDITION)
    assert words in details
    assert path in details
    os.rename(path, f"{path}.trap")
    await reopen(world, container)
    assert stat.S_ISREG(os.lstat(path).st_mode)


async def test_a_fifo_with_a_reader_is_no_log_either(world: World) -> None:
    pod = await world.pod()
    os.makedirs(pod.config["log_directory"], exist_ok=True)
    os.mkfifo(pod.log("fifo"))
    reading = os.open(pod.log("fifo"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        container = await world.cri.create(pod.id, world.config("echo after", name="fifo"), pod.config)
        assert "is a FIFO" in await refused(world.cri.start(container), grpc.StatusCode.FAILED_PRECONDITION)
    finally:
        os.close(reading)


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_directory_that_becomes_a_link_leads_no_log_away(world: World, tmp_path: Path, depth: int) -> None:
    pod = await world.pod()
    directory = pod.config["log_directory"]
    config = world.config("sleep 600")
    config["log_path"] = "web/0.log"
    running = await world.cri.run(pod.id, config, pod.config)
    late = world.config("sleep 600")
    late["log_path"] = "web/late/1.log"
    container = await world.cri.create(pod.id, late, pod.config)
    moved = [directory, f"{directory}/web"][depth]
    os.rename(moved, f"{moved}.away")
    (tmp_path / "web").mkdir()
    os.symlink(tmp_path if depth == 0 else tmp_path / "web", moved)
    assert "symbolic link" in await refused(reopen(world, running), grpc.StatusCode.FAILED_PRECONDITION)
    assert "link" in await refused(world.cri.start(container), grpc.StatusCode.FAILED_PRECONDITION)
    assert list((tmp_path / "web").iterdir()) == []


async def test_a_log_directory_that_root_reaches_by_a_link_works(world: World, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pod = await in_directory(world, str(tmp_path / "link" / "pod"))
    container = await world.run(pod, "echo one; sleep 600", name="c")
    assert (await world.cri.status(container)).log_path == pod.log("c")
    os.rename(pod.log("c"), pod.log("c") + ".1")
    await reopen(world, container)
    assert (tmp_path / "real" / "pod" / "c.log").exists()
    await world.cri.remove_pod(pod.id)
