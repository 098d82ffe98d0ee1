"""Images on a file system of their own, what is told of its usage, and pinned images."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import SETTINGS, Service, overlay
from tests.support.instance import Instance, python
from tests.support.layout import Entry, directory, hardlink, tar
from tests.support.registry import Registry
from tests.support.world import World

BASE = tar([directory("d"), Entry("d/x", b"x" * 10_000), Entry("d/keep", b"k")])
UPPER = tar([hardlink("d/y", "d/x"), Entry("d/.wh.keep")])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """Return a mounted file system that is not the root's."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(path)], check=True)
    yield f"{path}/images"
    subprocess.run(["umount", str(path)], check=True)


async def test_blobs_and_layers_lie_on_the_image_path_only(fake: FakeRegistry, tmp_path: Path, disk: str) -> None:
    made = fake.image("t", [BASE, UPPER])
    async with Service(str(tmp_path / "root"), images=disk) as service:
        paths = await service.layers(f"{fake.host}/a:t")
        assert all(name.startswith("state.db") for name in os.listdir(tmp_path / "root"))
        assert all(path.startswith(f"{disk}/layers/") for path in paths)
        # A hard link to a lower layer's file is settled by a copy: among layers only.
        assert overlay(paths, "ls d; cat d/y | wc -c") == "x\ny\n10000\n"
        usage = service.images.fs_usage()
        assert usage.mountpoint == f"{disk}/layers"
        assert os.stat(usage.mountpoint).st_dev != os.stat(tmp_path / "root").st_dev
    async with Service(str(tmp_path / "root"), images=disk) as service:
        assert all(os.path.isdir(path) for path in paths)
        service.images.release("test")
        await service.images.remove(made["id"])
        await service.images.settled()
        assert service.files() == []


async def test_sizes_are_those_of_what_was_written(fake: FakeRegistry, tmp_path: Path) -> None:
    """Known from the unpacking: nothing is walked, and what is on disk is what was said."""
    made = fake.image("t", [tar([Entry("f", b"!" * 100_000), *(Entry(f"s{n}", b"1") for n in range(50))])])
    async with Service(str(tmp_path)) as service:
        (path,) = await service.layers(f"{fake.host}/a:t")
        (image,) = service.images.list()
        packed = made["layers"][0]["size"]
        blocks = sum(entry.stat().st_blocks * 512 for entry in os.scandir(path))
        assert abs(image.size - packed - blocks) <= 8192  # the directory itself
        usage = service.images.fs_usage()
        config_and_manifest = sum(os.stat(f"{tmp_path}/content/sha256/{n}").st_size for n in _documents(tmp_path, made))
        assert usage.used_bytes == image.size + config_and_manifest
        assert usage.inodes_used == 52 + 3


def _documents(root: Path, made: dict[str, object]) -> list[str]:
    layers = made["layers"]
    assert isinstance(layers, list)
    return [n for n in os.listdir(f"{root}/content/sha256") if n != layers[0]["digest"].partition(":")[2]]


async def test_pinned_images_are_shown_as_pinned(fake: FakeRegistry, tmp_path: Path) -> None:
    one, two = fake.image("one", [BASE]), fake.image("two", [BASE, UPPER])
    by_digest = f"{fake.host}/a@{two['digest']}"
    async with Service(str(tmp_path), pinned=(f"{fake.host}/a:one", by_digest, "not/here")) as service:
        for tag in ("one", "two"):
            await service.images.pull(f"{fake.host}/a:{tag}")
        await service.images.pull(f"{fake.host}/b:one")
        assert {image.id: image.pinned for image in service.images.list()} == {one["id"]: True, two["id"]: True}
        service.images.reload(replace(SETTINGS, pinned=(by_digest,)))
        assert {image.id: image.pinned for image in service.images.list()} == {one["id"]: False, two["id"]: True}
        assert [gone.id for gone in service.images.prune(unused=True, dry_run=False).images] == [one["id"]]
        # A person's, or kubelet's, own request is obeyed.
        await service.images.remove(two["id"])
        assert service.images.list() == []


async def test_a_container_runs_from_another_file_system(
    registry: Registry, shared_image: str, tmp_path: Path, disk: str
) -> None:
    """The daemon with `images.path`: overlay's layers there, the writable layer at the root; ImageFsInfo tells both."""
    made = Instance(f'[images]\npath = "{disk}"\n')
    try:
        made.start()
        made.crictl("pull", shared_image)
        async with World(made, shared_image, registry) as world:
            outcome = await world.once("echo written > /f; cat /f")
            assert (outcome.stdout, outcome.code) == ("written\n", 0)
            told = json.loads(made.crictl("imagefsinfo").stdout)["status"]
            (image,), (container,) = told["imageFilesystems"], told["containerFilesystems"]
            assert image["fsId"]["mountpoint"] == f"{disk}/layers"
            assert container["fsId"]["mountpoint"] == f"{made.root}/containers"
            assert int(image["usedBytes"]["value"]) > int(container["usedBytes"]["value"])
            assert sorted(os.listdir(disk)) == ["content", "images.lock", "layers"]
            places = ["--root", f"{tmp_path}/root", "--state", f"{tmp_path}/state", "--socket", f"{tmp_path}/s"]
            second = [python(), "-m", "crishim", "serve", *places, "--config", made.config]
            refused = subprocess.run(second, check=False, capture_output=True, text=True, timeout=60)
            assert refused.returncode == 1
            assert f"serves the image path {disk}: stop it, or give this one" in refused.stderr
    finally:
        made.close()
