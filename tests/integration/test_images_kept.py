"""Images that are kept: holds, restarts, reboots, lost files, many layers."""

import os
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import (
    NotFoundError,
)
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support.layout import Entry, directory, tar

BIG = tar([directory("d"), Entry("d/noise", os.urandom(3_000_000))])
SMALL = tar([Entry("small", b"x")])


async def test_a_held_image_keeps_its_layers_until_it_is_released(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        (path,) = service.images.hold(f"{fake.host}/a:t", "container")
        await service.images.remove(made["id"])
        assert service.images.find(made["id"]) is None
        assert os.listdir(path) == ["small"]
        with pytest.raises(NotFoundError):
            service.images.hold(made["id"], "other")
    async with Service(str(tmp_path)) as service:
        assert service.images.list() == []
        assert os.listdir(path) == ["small"]
        assert await service.images.pull(f"{fake.host}/a:t") == made["id"]
        assert len(service.images.list()) == 1
        await service.images.remove(made["id"])
        service.images.release("container")
        service.images.release("container")
        await service.images.settled()
        assert service.files() == []


async def test_half_made_things_go_at_the_start(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        whole = service.files()
    (tmp_path / "layers" / ".new-1" / "deep").mkdir(parents=True)
    (tmp_path / "layers" / "zz").mkdir()
    (tmp_path / "content" / "sha256" / ("0" * 64)).write_bytes(b"x")
    old = tmp_path / "content" / "parts" / ("sha256-" + "0" * 64)
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    async with Service(str(tmp_path)) as service:
        await service.images.settled()
        assert service.files() == whole
        assert service.observed.reclaimed == [("layer", 2), ("blob", 1)]


async def test_layers_without_their_mark_are_made_again_after_a_reboot(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake.image("t", [SMALL, BIG, tar([Entry("d/more")])])

    def no_sync(_self: Any) -> None:
        raise OSError(5, "syncfs")

    async with Service(str(tmp_path)) as service:
        monkeypatch.setattr("crishim.images.layers.Layers._sync_files", no_sync)
        paths = await service.layers(f"{fake.host}/a:t")
        await service.images.settled()
    monkeypatch.undo()
    monkeypatch.setattr("crishim.images.layers.boot_id", lambda: "another boot")
    before = len(fake.requests)
    async with Service(str(tmp_path)) as service:
        again = service.images.hold(made["id"], "test")
        assert [sorted(os.listdir(path)) for path in again] == [["small"], ["d"], ["d"]]
        assert set(again) != set(paths)
        assert os.stat(f"{again[1]}/d/noise").st_size == 3_000_000
    async with Service(str(tmp_path)) as service:
        assert service.images.hold(made["id"], "test") == again
    assert len(fake.requests) == before


async def test_one_bad_record_or_lost_file_does_not_stop_the_start(fake: FakeRegistry, tmp_path: Path) -> None:
    kept, lost, bad = (fake.image(tag, [tar([Entry(tag)])]) for tag in ("kept", "lost", "bad"))
    async with Service(str(tmp_path)) as service:
        for tag in ("kept", "lost", "bad"):
            await service.images.pull(f"{fake.host}/a:{tag}")
        (path,) = service.images.hold(lost["id"], "x")
        service.images.release("x")
        service.store.images.put(bad["id"], b'{"id": 5}')
    os.rename(path, f"{tmp_path}/gone")
    os.unlink(tmp_path / "content" / "sha256" / lost["layers"][0]["digest"].partition(":")[2])
    async with Service(str(tmp_path)) as service:
        assert [image.id for image in service.images.list()] == [kept["id"]]
        for tag in ("lost", "bad"):
            await service.images.pull(f"{fake.host}/a:{tag}")
        assert len(service.images.list()) == 3


async def test_deep_images(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("deep", [tar([Entry(f"f{n}")]) for n in range(120)], pack=lambda data: data)
    async with Service(str(tmp_path)) as service:
        paths = await service.layers(f"{fake.host}/a:deep")
        assert len(set(paths)) == 120
        assert max(len(os.path.basename(path)) for path in paths) <= 4
