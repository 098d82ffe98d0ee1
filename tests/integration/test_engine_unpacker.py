"""The unpacker: one for many layers, replaced when it died, gone when idle; blobs may grow while they are unpacked."""

import asyncio
import gzip
import hashlib
import io
import os
import signal
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crishim.engine import unpacking
from crishim.unpack.layerstream import TOTAL
from tests.support.lab import Lab, open_lab, scenario, until
from tests.support.tars import archive, info

pytestmark = pytest.mark.shared_mounts

FILES = {f"f{n}": os.urandom(100_000) for n in range(30)}


def _archive(files: Mapping[str, bytes]) -> bytes:
    def fill(file: tarfile.TarFile) -> None:
        for name, data in files.items():
            file.addfile(info(name, len(data)), io.BytesIO(data))

    return archive(fill)


SMALL, LARGE = _archive({"a": b"first", "d/b": b"second"}), _archive(FILES)


@pytest.fixture
def lab(test_leaks: None) -> Iterator[Lab]:
    """Return an instance of the test's own: its unpacker is killed."""
    yield from open_lab()


class Blob:
    """A file that grows, and the pipe that says so."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._fd = os.memfd_create("blob")
        self._told, self._tell = os.pipe()
        self._written = 0

    def add(self, data: bytes) -> None:
        """Write more, then tell."""
        self._written += os.pwrite(self._fd, data, self._written)
        os.write(self._tell, self._written.to_bytes(TOTAL, "little"))

    def end(self) -> None:
        """Tell that nothing more is wanted."""
        os.close(self._tell)
        self._tell = -1

    async def unpack(self, lab: Lab, directory: Path, plain: bytes, **more: object) -> dict[str, Any]:
        """Have it unpacked; `plain` is what its digest is to be."""
        directory.mkdir()
        dest = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        diff_id = f"sha256:{hashlib.sha256(plain).hexdigest()}"
        try:
            fds = (self._fd, self._told, dest)
            return await lab.engine.extract(fds, {"size": self._size, "diff_id": diff_id, **more})
        finally:
            for fd in (self._fd, self._told, dest, self._tell):
                if fd >= 0:
                    os.close(fd)


async def _unpacked(lab: Lab, directory: Path, plain: bytes, **more: object) -> dict[str, Any]:
    packed = gzip.compress(plain)
    blob = Blob(len(packed))
    blob.add(packed)
    return await blob.unpack(lab, directory, plain, **more)


def _unpackers(lab: Lab) -> list[int]:
    children = Path(f"/proc/{lab.engine.spawner_pid}/task/{lab.engine.spawner_pid}/children").read_text("ascii")
    return [int(pid) for pid in children.split() if Path(f"/proc/{pid}/comm").read_text("ascii") == "crishim-unpack\n"]


@scenario
async def test_one_unpacker_serves_many_layers_until_it_is_idle(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _unpackers(lab) == []
    assert (await _unpacked(lab, tmp_path / "1", SMALL))["ok"]
    (pid,) = _unpackers(lab)
    assert (await _unpacked(lab, tmp_path / "2", SMALL))["ok"]
    assert _unpackers(lab) == [pid]
    assert (tmp_path / "2" / "d" / "b").read_bytes() == b"second"
    monkeypatch.setattr(unpacking, "_IDLE", 0.01)
    assert (await _unpacked(lab, tmp_path / "3", SMALL))["ok"]
    await until(lambda: _unpackers(lab) == [])
    assert (await _unpacked(lab, tmp_path / "4", SMALL))["ok"]


@scenario
async def test_a_dead_unpacker_is_replaced(lab: Lab, tmp_path: Path) -> None:
    assert (await _unpacked(lab, tmp_path / "1", SMALL))["ok"]
    (pid,) = _unpackers(lab)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: _unpackers(lab) == [])
    assert (await _unpacked(lab, tmp_path / "2", SMALL))["ok"]


@pytest.mark.parametrize("who", ["unpacker", "spawner"])
@scenario
async def test_one_that_dies_with_a_layer_in_its_hands_is_replaced(lab: Lab, tmp_path: Path, who: str) -> None:
    if who == "unpacker":
        assert (await _unpacked(lab, tmp_path / "1", SMALL))["ok"]
    pid = _unpackers(lab)[0] if who == "unpacker" else lab.engine.spawner_pid
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(_unpacked(lab, tmp_path / f"layer{n}", SMALL)) for n in range(3)]
    await asyncio.sleep(0.1)
    assert not any(call.done() for call in calls)
    os.kill(pid, signal.SIGKILL)
    for n, call in enumerate(calls):
        assert (await call)["ok"]
        assert (tmp_path / f"layer{n}" / "d" / "b").read_bytes() == b"second"


@pytest.mark.parametrize("ahead", [False, True])
@scenario
async def test_a_blob_is_unpacked_while_it_grows(lab: Lab, tmp_path: Path, ahead: bool) -> None:
    packed = gzip.compress(LARGE, 1)
    blob = Blob(len(packed))
    blob.add(packed[:500_000])
    task = asyncio.create_task(blob.unpack(lab, tmp_path / "x", LARGE, ahead=ahead))
    await until((tmp_path / "x" / "f2").exists)
    assert not task.done()
    blob.add(packed[500_000:])
    assert (await task)["ok"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == FILES


@pytest.mark.parametrize("ahead", [False, True])
@scenario
async def test_a_blob_that_ends_too_early_or_is_another_one(lab: Lab, tmp_path: Path, ahead: bool) -> None:
    packed = gzip.compress(LARGE, 1)
    blob = Blob(len(packed) - 100_000)
    blob.add(packed[:-100_000])
    report = await blob.unpack(lab, tmp_path / "x", LARGE, what="layer x", ahead=ahead)
    assert (report["kind"], report["error"]) == ("DataLossError", "layer x: the gzip data end too early")
    other = Blob(len(packed))
    other.add(packed)
    report = await other.unpack(lab, tmp_path / "y", SMALL, what="layer y", ahead=ahead)
    assert report["kind"] == "DataLossError"
    assert report["error"].startswith("layer y: unpacked it has the digest sha256:")


@pytest.mark.parametrize("ahead", [False, True])
@scenario
async def test_a_blob_that_is_all_there_is_given_up_half_way(lab: Lab, tmp_path: Path, ahead: bool) -> None:
    files = {f"d{n // 1000}/f{n}": os.urandom(600) for n in range(30_000)}
    plain = _archive(files)
    packed = gzip.compress(plain, 1)
    blob = Blob(len(packed))
    blob.add(packed)
    task = asyncio.create_task(blob.unpack(lab, tmp_path / "x", plain, ahead=ahead))
    await until((tmp_path / "x" / "d1").exists)
    blob.end()
    assert (await task)["kind"] == "AbortedError"
    assert not (tmp_path / "x" / "d29").exists()


@scenario
async def test_what_fails_before_the_layer_is_read_is_no_fault_of_the_layers(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dest = os.open(tmp_path / "file", os.O_RDONLY)  # no directory: nothing can be a root there
    blob = Blob(len(SMALL))
    blob.add(SMALL)
    try:
        diff_id = f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
        report = await lab.engine.extract((blob._fd, blob._told, dest), {"size": len(SMALL), "diff_id": diff_id})
    finally:
        for fd in (blob._fd, blob._told, blob._tell, dest):
            os.close(fd)
    assert (report["kind"], report["error"]) == ("fault", "mount the layer's directory: Invalid argument")
