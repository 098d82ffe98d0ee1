"""Archives that are hostile, broken or cut off: the error says why, and nothing of them is left."""

import asyncio
import gzip
import io
import lzma
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crishim.errors import (
    CrishimError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnimplementedError,
)
from tests.fakes.registry_images import Service
from tests.support import archives
from tests.support.archives import (
    IMAGE,
    INDEX,
    LAYER,
    NAME,
    Layout,
    Members,
    chunks,
    left,
    load,
    made,
    pack,
    unheard,
)
from tests.support.layout import Entry, hardlink, symlink, tar

pytestmark = pytest.mark.usefixtures("extraction")


# --- hostile and broken ----------------------------------------------------------------------------------------------


def _without(members: Members, part: str) -> Members:
    return [(name, content) for name, content in members if part not in name]


def _replaced(members: Members, part: str, change: Callable[[bytes], Any]) -> Members:
    return [
        (name, change(content) if part in name and isinstance(content, bytes) else content) for name, content in members
    ]


def _oci_lying_size(what: str) -> Members:
    layout = Layout()
    config = layout.blob(IMAGE.config, archives.CONFIG)
    layers = [layout.blob(layer, LAYER) for layer in IMAGE.layers]
    lying = config if what == "config" else layers[0]
    lying["size"] += 1
    layout.add(layout.document({"config": config, "layers": layers}), NAME)
    return layout.members()


def _endless() -> Members:
    layout = Layout()
    entry = layout.image(IMAGE)
    for _ in range(10):
        entry = layout.document({"manifests": [entry]}, INDEX)
    layout.add(entry)
    return layout.members()


def _layer_with(*entries: Entry) -> Members:
    return archives.docker_old({made([Entry("good")], list(entries)): [NAME]})


LIST = '[{"Config": "%s.json", "RepoTags": %s, "Layers": %s}]'
GOOD = pack(archives.docker_old({IMAGE: [NAME]}))


@pytest.mark.parametrize(
    ("archive", "kind", "part"),
    [
        (b"", DataLossError, "neither index.json nor manifest.json"),
        (b"this is no archive " * 100, DataLossError, "no tar archive"),
        (b"PK\x03\x04" + bytes(2000), FailedPreconditionError, "zip"),
        (pack([("etc/passwd", b"root")]), DataLossError, "crishim import"),
        (GOOD[:60_000], DataLossError, "truncated"),
        (_without(archives.docker_old({IMAGE: [NAME]}), "0001" * 16), DataLossError, "not in the archive"),
        (_without(archives.docker_new({IMAGE: [NAME]}), archives.hexes(IMAGE.config)), DataLossError, "not in the"),
        (_without(archives.oci(IMAGE, NAME), archives.hexes(IMAGE.config)), DataLossError, "lacks the blob"),
        (_replaced(archives.oci(IMAGE), "blobs/", lambda b: b[:-1] + b"~"), DataLossError, "have the digest"),
        (_replaced(archives.docker_old({IMAGE: []}), ".json", lambda b: b + b" "), DataLossError, "has the digest"),
        (_replaced(archives.docker_old({IMAGE: []}), "layer.tar", lambda b: b + b"\0"), DataLossError, "image says"),
        (_replaced(archives.oci(IMAGE), "index", lambda _: b"[]"), DataLossError, "index.json"),
        (_replaced(archives.oci(IMAGE), "index", lambda _: b"{" * 10_000), DataLossError, "JSON"),
        (_replaced(archives.oci(IMAGE), "index", lambda _: b'{"manifests": []}'), DataLossError, "lists no image"),
        (_replaced(archives.oci(IMAGE), "index", lambda _: bytes(9 << 20)), DataLossError, "larger|limit"),
        (
            _replaced(archives.oci(IMAGE), "oci-layout", lambda _: b'{"imageLayoutVersion": "2.0"}'),
            UnimplementedError,
            "2.0",
        ),
        (
            _replaced(archives.docker_old({IMAGE: []}), "manifest.json", lambda _: b"{}"),
            DataLossError,
            "must be an array",
        ),
        (
            _replaced(archives.docker_old({IMAGE: []}), "manifest.json", lambda _: b"[]"),
            DataLossError,
            "lists no image",
        ),
        (
            _replaced(archives.docker_old({IMAGE: []}), "manifest.json", lambda _: b"[7]"),
            DataLossError,
            "must be an object",
        ),
        (archives.docker_old({IMAGE: ["No/Such"]}), DataLossError, "lower case"),
        (archives.docker_old({IMAGE: [f"a@{IMAGE.id}"]}), DataLossError, "must be tags"),
        (archives.oci(IMAGE, f"a@sha256:{'0' * 64}"), DataLossError, "but has the digest"),
        (_oci_lying_size("config"), DataLossError, "the manifest says"),
        (_oci_lying_size("layer"), DataLossError, "the manifest says"),
        (_endless(), DataLossError, "indexes within each other"),
        (_layer_with(hardlink("h", "../../../etc/passwd")), DataLossError, "passwd"),
        (archives.docker_old({made(b"no tar at all" * 100): [NAME]}), DataLossError, "tar"),
        (
            [
                *_without(archives.docker_old({IMAGE: []}), "layer"),
                *[(n, "/etc/passwd") for n, c in archives.docker_old({IMAGE: []}) if "layer" in n],
            ],
            DataLossError,
            "not in the archive",
        ),
        (
            [
                *_without(archives.docker_old({IMAGE: []}), "layer"),
                *[(n, "../../../../etc/passwd") for n, c in archives.docker_old({IMAGE: []}) if "layer" in n],
            ],
            DataLossError,
            "not in the archive",
        ),
        (
            [
                *_without(archives.docker_old({IMAGE: []}), "layer"),
                *[(n, f"={n}") for n, c in archives.docker_old({IMAGE: []}) if "layer" in n],
            ],
            DataLossError,
            "not in the archive",
        ),
        ([("index.json", "index.json")], DataLossError, "no image archive"),
        ([(f"blobs/{n}", b"") for n in range(20_001)], ResourceExhaustedError, "20000 members"),
        ([("n" * 2000, b"")], DataLossError, "longer than 1024"),
        (gzip.compress(bytes(100 << 20)), ResourceExhaustedError, "max_ratio"),
        (lzma.compress(bytes(100 << 20)), ResourceExhaustedError, "max_ratio"),
        (zstandard.compress(bytes(100 << 20)), ResourceExhaustedError, "max_ratio"),
        (
            archives.docker_new({made(tar([Entry("zeros", bytes(80 << 20))])): []}, gzip.compress),
            ResourceExhaustedError,
            "max_ratio",
        ),
    ],
)
async def test_a_bad_archive_is_told_and_leaves_nothing(
    tmp_path: Path, archive: Members | bytes, kind: type[CrishimError], part: str
) -> None:
    async with Service(str(tmp_path), max_ratio=200) as service:
        with pytest.raises(kind, match=part):
            await load(service, archive)
        assert await left(service) == []
        assert service.images.list() == []
        assert service.images.fs_usage().used_bytes == 0


async def test_paths_and_links_that_lead_out_stay_inside(tmp_path: Path) -> None:
    up = "../" * 12
    layer = [Entry(f"{up}{tmp_path}/escape", b"x"), symlink("l", str(tmp_path)), Entry("l/escape", b"x")]
    root = tmp_path / "root"
    async with Service(str(root)) as service:
        await load(service, archives.docker_old({made(layer): [NAME]}))
        assert os.listdir(tmp_path) == ["root"]
    for base, _, names in os.walk(root):
        assert "escape" not in names or base.startswith(f"{root}/layers/")


async def test_an_archive_gives_all_of_its_images_or_none(tmp_path: Path) -> None:
    bad = made([Entry("fine")], [hardlink("h", "../../../etc/passwd")])
    async with Service(str(tmp_path)) as service:
        with pytest.raises(DataLossError):
            await load(service, archives.docker_old({IMAGE: ["good"], bad: ["bad"]}))
        assert (await left(service), service.images.list()) == ([], [])


async def test_limits_on_one_member_and_on_layers(tmp_path: Path) -> None:
    async with Service(str(tmp_path), max_layer_bytes=50_000) as service:
        with pytest.raises(ResourceExhaustedError, match="max_layer_bytes"):
            await load(service, archives.docker_old({IMAGE: []}))
        with pytest.raises(ResourceExhaustedError, match="max_layer_bytes"):
            await load(service, archives.oci(IMAGE))
        assert await left(service) == []


async def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    packed = subprocess.run(
        ["tar", "--sparse", "-cf", "-", "-C", str(tmp_path), "sparse"], check=True, capture_output=True
    ).stdout
    async with Service(str(tmp_path / "root")) as service:
        with pytest.raises(DataLossError, match="sparse"):
            await load(service, packed)


async def test_the_last_of_several_members_counts(tmp_path: Path) -> None:
    members = archives.docker_old({IMAGE: [NAME]})
    async with Service(str(tmp_path)) as service:
        await load(service, [("manifest.json", b"nonsense"), *members, (members[0][0], b"2.0")])
        assert service.images.find(NAME) is not None


# --- cut off ---------------------------------------------------------------------------------------------------------


async def _hanging(data: bytes, reached: asyncio.Event) -> AsyncIterator[bytes]:
    yield data
    reached.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize("size", [0, 300, 60_000, len(GOOD)])
async def test_a_caller_who_leaves_leaves_nothing(tmp_path: Path, size: int) -> None:
    async with Service(str(tmp_path)) as service:
        reached = asyncio.Event()
        loading = asyncio.create_task(service.images.archives.load(_hanging(GOOD[:size], reached), "", unheard))
        await reached.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert await left(service) == []
        await load(service, GOOD)


async def test_a_stream_that_breaks_says_why(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield GOOD[:60_000]
        raise InvalidArgumentError("options", "in the middle")

    async with Service(str(tmp_path)) as service:
        with pytest.raises(InvalidArgumentError, match="in the middle"):
            await service.images.archives.load(broken(), "", unheard)
        assert await left(service) == []


async def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)], check=True)
    try:
        async with Service(str(disk)) as service:
            for size in (3_000_000, 6_000_000):  # full while unpacking, and while the archive comes
                big = made([Entry("noise", os.urandom(size))])
                with pytest.raises(ResourceExhaustedError, match="No space left"):
                    await load(service, archives.docker_old({big: [NAME]}))
                assert await left(service) == []
            await load(service, archives.docker_old({IMAGE: [NAME]}))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_what_a_killed_daemon_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        await load(service, archives.docker_old({IMAGE: [NAME]}))
    spool = tmp_path / "content" / "loads" / "0123456789ab"
    spool.mkdir()
    (spool / "1").write_bytes(bytes(100))
    stray = tmp_path / "content" / "sha256" / ("0" * 64)  # published, its image not yet stored
    stray.write_bytes(b"")
    async with Service(str(tmp_path)) as service:
        assert service.observed.reclaimed == [("archive", 1), ("blob", 1)]
        assert not spool.exists()
        assert not stray.exists()
        assert service.images.find(NAME) is not None


async def test_what_is_being_loaded_is_not_collected(tmp_path: Path) -> None:
    """A removal in the middle collects what nothing pins."""
    async with Service(str(tmp_path)) as service:
        await load(service, archives.docker_old({made([Entry("o")]): ["other"]}))
        removed = 0

        async def report(items: object) -> None:
            nonlocal removed
            removed += 1
            await service.images.remove("other")
            service.images.collect()

        await service.images.archives.load(chunks(GOOD, 4096), "", report)
        assert removed
        assert len(service.images.hold(IMAGE.id, "test")) == 2


async def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    """One piece at a time is asked of the stream, and held."""
    held = 0
    most = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal held, most
        buffer = io.BytesIO(pack(archives.docker_old({made([Entry("n", bytes(8 << 20))]): [NAME]})))
        while piece := buffer.read(64 << 10):
            held += 1
            most = max(most, held)
            yield piece
            held -= 1

    async with Service(str(tmp_path)) as service:
        await service.images.archives.load(stream(), "", unheard)
    assert most == 1
