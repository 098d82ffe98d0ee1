"""Shared flights and decompression by magic."""

import asyncio
import gzip
import io
import os
import threading
import zlib

import pytest
import zstandard

from crishim.errors import DataLossError, FailedPreconditionError, NotFoundError
from crishim.images.flight import Shared
from crishim.images.threads import through, wait_out
from crishim.unpack.decompress import pieces

DATA = os.urandom(100_000) + b"hello " * 500_000


def _unpacked(data: bytes, step: int = 1 << 18) -> bytes:
    stream = io.BytesIO(data)
    return b"".join(pieces(lambda size: stream.read(min(size, step)), "blob x"))


@pytest.mark.parametrize("step", [1, 3, 4096, 1 << 20])
def test_formats_are_known_by_their_bytes(step: int) -> None:
    small = DATA[:3000]
    members = b"".join(gzip.compress(small[n : n + 700]) for n in range(0, 3000, 700))
    frames = b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(small[:1000]) + zstandard.compress(small[1000:])
    for packed in (small, gzip.compress(small), members, members + bytes(700), frames):
        assert _unpacked(packed, step) == small
    assert _unpacked(b"", step) == b""


def test_large_data_come_in_bounded_pieces() -> None:
    for packed in (gzip.compress(bytes(50_000_000)), zstandard.compress(bytes(50_000_000))):
        stream = io.BytesIO(packed)
        sizes = [len(piece) for piece in pieces(stream.read, "x")]
        assert sum(sizes) == 50_000_000
        assert max(sizes) <= 1 << 20


def test_the_data_survive() -> None:
    assert _unpacked(gzip.compress(DATA)) == DATA
    assert _unpacked(zstandard.compress(DATA)) == DATA


def test_damage_is_noticed() -> None:
    packed = gzip.compress(DATA)
    for bad in (packed[:-1], packed[: len(packed) // 2], packed + b"garbage", packed[:-8] + bytes(8)):
        with pytest.raises(DataLossError, match="blob x"):
            _unpacked(bad)
    with pytest.raises(DataLossError, match="zstd"):
        _unpacked(b"\x28\xb5\x2f\xfd" + os.urandom(100))
    assert zlib.decompress(packed, 31) == DATA


def test_other_packings_are_named() -> None:
    with pytest.raises(FailedPreconditionError, match="xz"):
        _unpacked(b"\xfd7zXZ\0rest")


async def test_a_flight_is_shared_and_outlives_one_caller() -> None:
    shared: Shared[int] = Shared()
    gate = asyncio.Event()
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    callers = [asyncio.create_task(shared.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    gate.set()
    assert await asyncio.gather(*callers[1:]) == [1, 1]
    assert await shared.run("k", work) == 2
    assert len(shared) == 0


async def test_work_ends_with_its_last_caller_and_a_newcomer_waits_for_the_end() -> None:
    shared: Shared[str] = Shared()
    ended = asyncio.Event()
    story = []

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            story.append("winding up")
            await ended.wait()
            story.append("ended")
        return ""

    async def quick() -> str:
        story.append("new")
        return "new"

    first = asyncio.create_task(shared.run("k", slow))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(shared.run("k", quick))
    await asyncio.sleep(0)
    ended.set()
    assert await second == "new"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert story == ["winding up", "ended", "new"]


async def test_an_error_reaches_every_caller() -> None:
    shared: Shared[None] = Shared()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise NotFoundError("gone")

    results = await asyncio.gather(*(shared.run("k", fails) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["gone"] * 3


async def test_a_caller_that_is_cancelled_twice_still_waits_for_the_end() -> None:
    shared: Shared[str] = Shared()
    ended = asyncio.Event()
    story = []

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await ended.wait()
            story.append("ended")
        return ""

    async def quick() -> str:
        story.append("new")
        return "new"

    first = asyncio.create_task(shared.run("k", slow))
    await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
        first.cancel()
    second = asyncio.create_task(shared.run("k", quick))
    await asyncio.sleep(0.01)
    assert (first.done(), story) == (False, [])
    ended.set()
    assert await second == "new"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert story == ["ended", "new"]


async def test_a_thread_is_waited_for_through_cancellations() -> None:
    gate = threading.Event()
    task = asyncio.create_task(through("x", gate.wait))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(NotFoundError):
        await through("x", _fail)
    assert await through("x", lambda: 5) == 5
    await wait_out([])


def _fail() -> None:
    raise NotFoundError("gone")
