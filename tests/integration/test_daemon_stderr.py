"""A standard error that nobody reads, or that nobody can read any more: daemon, spawner and keepers go on."""

import asyncio
import fcntl
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.abilities import need_containers
from tests.support.configs import pod_config
from tests.support.cri import attempt
from tests.support.instance import Instance
from tests.support.registry import Registry
from tests.support.world import World

ROOM = 4096


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Return the reading end of a small pipe, and the writing one, which the instance gets."""
    ends = list(os.pipe())
    fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, ROOM)
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def world(test_leaks: None, pipe: list[int], busybox_reference: str, registry: Registry) -> Iterator[World]:
    """Return a maker of pods on an instance whose standard error is the pipe."""
    need_containers()
    made = Instance()
    made.stderr = pipe[1]
    try:
        made.start()
        os.close(pipe.pop())
        made.crictl("pull", busybox_reference)
        yield World(made, busybox_reference, registry)
    finally:
        made.stderr = -1
        made.close()


def drained(reading: int) -> bytes:
    """Return what is in a pipe now."""
    parts: list[bytes] = []
    while True:
        try:
            data = os.read(reading, 65536)
        except BlockingIOError:
            return b"".join(parts)
        if not data:
            return b"".join(parts)
        parts.append(data)


def lost(world: World) -> float:
    """Return how many lines the daemon's metrics say were lost."""
    with urllib.request.urlopen(f"http://{world.instance.metrics}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    (value,) = re.findall(r"^crishim_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
    return float(value)


async def flood(world: World) -> None:
    """Make calls whose errors are logged until more was said than the daemon keeps for a reader."""
    while not await asyncio.to_thread(lost, world):
        for _ in range(20):
            request = api.ReopenContainerLogRequest(container_id="f" * 20_000)
            calls = [attempt(world.cri.runtime.ReopenContainerLog(request, timeout=60)) for _ in range(20)]
            for _, error in await asyncio.gather(*calls):
                assert error is not None
                assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_daemon_serves_on_counts_what_it_dropped_and_tells_it(world: World, pipe: list[int]) -> None:
    assert await asyncio.to_thread(lost, world) == 0
    await flood(world)
    assert (await world.once("echo served")).stdout == "served\n"
    count = await asyncio.to_thread(lost, world)
    text = b""
    while b"lines of the log were lost" not in text:
        text += drained(pipe[0])
        await asyncio.sleep(0.01)
    assert all(line.startswith(b"20") for line in text.split(b"\n") if line)  # whole lines, whatever was dropped
    assert len(text) > 1 << 20  # what waited was not lost
    assert f"count={count:.0f}".encode() in text


async def test_a_keeper_to_whom_nobody_listens_goes_on(world: World, pipe: list[int], tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "logs", str(tmp_path)], check=True)
    try:
        await flood(world)
        config = pod_config("talks", log_directory=str(tmp_path))
        pod = await world.cri.run_pod(config)
        for reading in (True, False):  # each time the keeper says that the log's disk is full
            if not reading:
                os.close(pipe.pop())
            container = await world.cri.run(pod, world.config("seq 1 40000; exit 3"), config)
            assert (await world.cri.wait_exit(container)).exit_code == 3
        assert (await world.cri.run(pod, world.config("true"), config)) != ""
        await world.cri.remove_pod(pod)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
