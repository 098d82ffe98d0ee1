"""Loading archives: every form that they come in, what they name, and what hostile or broken ones leave: nothing."""

import asyncio
import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
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
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)
from crishim.images.archive.api import Loaded
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support import archives
from tests.support.archives import (
    DOCKER_MANIFEST,
    INDEX,
    LAYER,
    Layout,
    Made,
    Members,
    chunks,
    left,
    made,
    need_extraction,
    pack,
    unheard,
)
from tests.support.layout import Entry, architecture, directory, hardlink, symlink, tar

NAME = "docker.io/library/demo:1"
BASE = [directory("a"), Entry("a/x", b"1" * 100_000), Entry("dev", kind=tarfile.CHRTYPE, device=(1, 3))]
TOP = [Entry("a/.wh.x"), Entry("y", b"y", uid=7), hardlink("z", "y"), symlink("l", "y")]
IMAGE = made(BASE, TOP, Cmd=["run"])


@pytest.fixture(autouse=True)
def _ability() -> None:
    need_extraction()


async def load(service: Service, members: Members | bytes, name: str = "") -> tuple[Loaded, ...]:
    data = members if isinstance(members, bytes) else pack(members)
    return await service.images.archives.load(chunks(data), name, unheard)


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        archives.docker_old({IMAGE: [NAME]}),
        archives.docker_new({IMAGE: [NAME]}),
        archives.docker_new({IMAGE: [NAME]}, gzip.compress),
        archives.docker_new({IMAGE: [NAME]}, zstandard.compress),
        archives.oci(IMAGE, NAME),
        list(reversed(archives.oci(IMAGE, NAME))),
        [(f"./{name}", content) for name, content in archives.oci(IMAGE, NAME)],
        [(f"somewhere/{name}", content) for name, content in archives.oci(IMAGE, NAME)],
        [(f"somewhere/{name}", content) for name, content in archives.docker_old({IMAGE: [NAME]})],
    ],
    ids=[
        "old",
        "new",
        "new-gzip",
        "new-zstd",
        "oci",
        "oci-reversed",
        "oci-dot",
        "oci-in-directory",
        "old-in-directory",
    ],
)
async def test_an_image_of_any_form_is_the_same(tmp_path: Path, members: Members) -> None:
    async with Service(str(tmp_path)) as service:
        assert await load(service, members) == (Loaded(IMAGE.id, (NAME,)),)
        (image,) = service.images.list()
        assert (image.id, image.repo_tags, image.config.cmd) == (IMAGE.id, (NAME,), ("run",))
        bottom, top = service.images.hold(IMAGE.id, "test")
        assert sorted(os.listdir(bottom)) == ["a", "dev"]
        assert os.stat(f"{bottom}/dev").st_rdev == os.makedev(1, 3)
        assert os.stat(f"{top}/a/x").st_rdev == 0
        assert (os.stat(f"{top}/y").st_uid, os.stat(f"{top}/y").st_nlink) == (7, 2)
        assert os.listdir(f"{service.paths.content}/loads") == []
    async with Service(str(tmp_path)) as service:  # what was loaded is durable
        assert service.images.list() == [image]
        assert service.observed.reclaimed == []


@pytest.mark.parametrize(
    "packed",
    [
        lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
        zstandard.compress,
        lzma.compress,
        lambda data: bz2.compress(data[:5000]) + bz2.compress(data[5000:]),
    ],
    ids=["gzip", "zstd", "xz", "bzip2"],
)
async def test_a_packed_archive(tmp_path: Path, packed: Callable[[bytes], bytes]) -> None:
    data = packed(pack(archives.docker_old({IMAGE: [NAME]})))
    async with Service(str(tmp_path)) as service:
        assert await load(service, data) == (Loaded(IMAGE.id, (NAME,)),)
        with pytest.raises(DataLossError, match=r"the archive|too early|corrupt"):
            await load(service, data[: len(data) // 2])


async def test_several_images_share_layers_and_have_many_names(tmp_path: Path) -> None:
    other = made(BASE, [Entry("other")])
    names = ["localhost:5000/a/b", "quay.io/c/d:2"]
    async with Service(str(tmp_path)) as service:
        loaded = await load(service, archives.docker_old({IMAGE: names, other: []}))
        assert loaded == (Loaded(IMAGE.id, ("localhost:5000/a/b:latest", "quay.io/c/d:2")), Loaded(other.id, ()))
        assert len([name for name in service.files() if name.startswith("layers/")]) == 3
        await service.images.remove(other.id)
        assert len(service.images.hold(IMAGE.id, "test")) == 2


async def test_links_of_either_kind_lead_to_a_layer(tmp_path: Path) -> None:
    image = made([Entry("x")], [Entry("x")])
    members = archives.docker_old({image: [NAME]})
    first = next(name for name, _ in members if name.endswith("layer.tar"))
    hard = [(name, f"={first}" if isinstance(content, str) else content) for name, content in members]
    absolute = [(name, f"/{first}" if isinstance(content, str) else content) for name, content in members]
    async with Service(str(tmp_path)) as service:
        for form in (members, hard, absolute):
            assert await load(service, form) == (Loaded(image.id, (NAME,)),)
            await service.images.remove(NAME)


async def test_an_image_without_layers(tmp_path: Path) -> None:
    empty = made()
    async with Service(str(tmp_path)) as service:
        assert await load(service, archives.docker_old({empty: [NAME]})) == (Loaded(empty.id, (NAME,)),)
        assert service.images.hold(empty.id, "test") == ()


async def test_many_loads_of_one_image_and_a_pull_of_it(fake: FakeRegistry, tmp_path: Path) -> None:
    image = Made(fake.blobs[fake.image("t", list(IMAGE.layers))["id"]], IMAGE.layers)
    async with Service(str(tmp_path)) as service:
        sources = [
            archives.oci(image, "a:latest"),
            archives.docker_old({image: ["b"]}),
            archives.oci(image, "c:latest"),
        ] * 2
        await asyncio.gather(service.images.pull(f"{fake.host}/a:t"), *(load(service, source) for source in sources))
        (found,) = service.images.list()
        tags = [f"docker.io/library/{name}:latest" for name in "abc"]
        assert sorted(found.repo_tags) == sorted([f"{fake.host}/a:t", *tags])
        (details,) = service.images.details("", dangling=False)
        assert details.manifest in {name.partition("@")[2] for name in found.repo_digests}
        await service.images.settled()
        assert len([name for name in service.files() if name.startswith("layers/")]) == 2
        await service.images.remove("a")
        assert await left(service) == []


async def test_an_image_whose_layers_repeat(tmp_path: Path) -> None:
    image = made([Entry("x")], b"", [Entry("x")], b"")
    async with Service(str(tmp_path)) as service:
        await load(service, archives.docker_old({image: [NAME]}))
        paths = service.images.hold(image.id, "test")
        assert paths[0] == paths[2]


# --- names -----------------------------------------------------------------------------------------------------------


async def test_which_annotation_names_an_image(tmp_path: Path) -> None:
    layout = Layout()
    entry = layout.image(IMAGE)
    other = layout.image(made([Entry("o")]))
    layout.add(entry, "1", **{"io.containerd.image.name": "docker.io/library/full:1"})
    layout.add(entry, "localhost/app")
    layout.add(entry, f"quay.io/by/digest@{entry['digest']}")
    layout.add(other, "just-a-tag")
    async with Service(str(tmp_path)) as service:
        first, second = await load(service, layout.members())
        assert first.names == ("docker.io/library/full:1", "localhost/app:latest")
        assert second.names == ()
        image = service.images.find(IMAGE.id)
        assert image is not None
        repositories = ("docker.io/library/full", "localhost/app", "quay.io/by/digest")
        assert image.repo_digests == tuple(f"{name}@{entry['digest']}" for name in repositories)


async def test_both_lists_of_contents_name_an_image(tmp_path: Path) -> None:
    """docker from 25 on, containerd: a layout that is a docker-archive too."""
    layout = Layout()
    entry = layout.image(IMAGE)
    layout.add(entry)
    listed = archives.docker_new({IMAGE: [NAME]}, lambda layer: gzip.compress(layer, 1, mtime=0))
    async with Service(str(tmp_path)) as service:
        (loaded,) = await load(service, [*layout.members(), *listed])
        assert loaded.names == (NAME,)
        (image,) = service.images.list()
        assert image.repo_digests == (f"docker.io/library/demo@{entry['digest']}",)


async def test_a_name_for_the_nameless(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        with pytest.raises(InvalidArgumentError, match=r"options\.name: the archive has 0 images"):
            await load(service, archives.oci(IMAGE, NAME), "mine")
        assert await left(service) == []
        for wrong in ("No/Such", f"a@sha256:{'0' * 64}"):
            with pytest.raises(InvalidArgumentError, match=r"options\.name"):
                await load(service, archives.oci(IMAGE), wrong)
        assert await load(service, archives.oci(IMAGE), "mine") == (
            Loaded(IMAGE.id, ("docker.io/library/mine:latest",)),
        )


async def test_what_a_registry_gave_stays_as_it_was(fake: FakeRegistry, tmp_path: Path) -> None:
    """The same image in other blobs only adds names; a name moves."""
    pulled = fake.image("t", list(IMAGE.layers))
    identity = pulled["id"]
    image = Made(fake.blobs[identity], IMAGE.layers)
    async with Service(str(tmp_path)) as service:
        other = await load(service, archives.docker_old({IMAGE: [NAME]}))
        await service.images.pull(f"{fake.host}/a:t")
        before = [name for name in service.files() if name.startswith("content")]
        await load(service, archives.docker_old({image: [NAME]}))
        await load(service, archives.oci(image))
        found = service.images.find(NAME)
        assert found is not None
        assert (found.id, found.repo_tags) == (
            identity,
            (f"{fake.host}/a:t", NAME) if fake.host < NAME else (NAME, f"{fake.host}/a:t"),
        )
        assert [name for name in service.files() if name.startswith("content")] == before
        old = service.images.find(other[0].id)
        assert old is not None
        assert old.repo_tags == ()
        # The other way round, the registry's manifest takes the place of one that was made here.
        await service.images.remove(identity)
        await load(service, archives.docker_old({image: [NAME]}))
        await load(service, archives.oci(image, NAME))
        found = service.images.find(NAME)
        assert found is not None
        assert len(found.repo_digests) == 1


# --- platforms and formats (field cases A3, B4) ----------------------------------------------------------------------


async def test_an_index_gives_the_image_of_this_machine(tmp_path: Path) -> None:
    layout = Layout()
    mine = layout.image(IMAGE, platform={"os": "linux", "architecture": architecture()})
    foreign = layout.image(made([Entry("f")], architecture="mips"), platform={"os": "plan9", "architecture": "mips"})
    unknown = {"os": "unknown", "architecture": "unknown"}
    attestation = layout.image(made([Entry("a")]), layer_type="application/vnd.in-toto+json", platform=unknown)
    index = layout.document({"manifests": [attestation, foreign, mine]}, INDEX)
    layout.add(attestation)
    layout.add(layout.document({"manifests": [index]}, INDEX), NAME)
    async with Service(str(tmp_path)) as service:
        assert await load(service, layout.members()) == (Loaded(IMAGE.id, (NAME,)),)
        (image,) = service.images.list()
        assert image.repo_digests == (f"docker.io/library/demo@{layout.entries[1]['digest']}",)
        blobs = [name for name in service.files() if name.startswith("content")]
        assert len(blobs) == 6  # two indexes, manifest, config, two layers: nothing of the others

        for entry in (attestation, foreign):
            layout.entries.clear()
            layout.add(entry, NAME)
            with pytest.raises((NotFoundError, DataLossError), match=r"no image for platform|lists no image"):
                await load(service, layout.members())


async def test_entries_of_one_name_are_one_image_for_several_machines(tmp_path: Path) -> None:
    layout = Layout()
    layout.add(
        layout.image(made([Entry("f")], architecture="mips"), platform={"os": "linux", "architecture": "mips"}), NAME
    )
    layout.add(layout.image(IMAGE, platform={"os": "linux", "architecture": architecture()}), NAME)
    async with Service(str(tmp_path)) as service:
        assert await load(service, layout.members()) == (Loaded(IMAGE.id, (NAME,)),)
        foreign = made([Entry("f")], architecture="s390x")
        with pytest.raises(NotFoundError, match=r"no image for platform .*s390x"):
            await load(service, archives.docker_old({foreign: ["f"]}))


def _estargz(layer: bytes) -> bytes:
    """A member for each part, and a footer of an empty one, as eStargz has them."""
    return b"".join(gzip.compress(layer[n : n + 4096]) for n in range(0, len(layer), 4096)) + gzip.compress(b"")


@pytest.mark.parametrize(
    ("packed", "layer_type", "media_type"),
    [
        (gzip.compress, "application/vnd.docker.image.rootfs.diff.tar.gzip", DOCKER_MANIFEST),
        (lambda layer: layer, f"{LAYER}+gzip", archives.MANIFEST),
        (gzip.compress, LAYER, archives.MANIFEST),
        (zstandard.compress, f"{LAYER}+zstd", archives.MANIFEST),
        (_estargz, f"{LAYER}+gzip", archives.MANIFEST),
        (gzip.compress, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", archives.MANIFEST),
    ],
    ids=["docker", "plain", "gzip", "zstd", "estargz", "foreign"],
)
async def test_layers_of_every_packing_from_archive_and_registry(
    fake: FakeRegistry, tmp_path: Path, packed: Callable[[bytes], bytes], layer_type: str, media_type: str
) -> None:
    layout = Layout()
    layout.add(layout.image(IMAGE, packed, layer_type, media_type), NAME)
    async with Service(str(tmp_path / "loaded")) as service:
        await load(service, layout.members())
        loaded = [os.listdir(path) for path in service.images.hold(IMAGE.id, "test")]
    fake.blobs.update({archives.sha(data): data for data in layout.blobs.values()})
    top = layout.blobs[f"blobs/sha256/{layout.entries[0]['digest'][7:]}"]
    fake.manifests["t"] = (media_type, top)
    async with Service(str(tmp_path / "pulled")) as service:
        assert [os.listdir(path) for path in await service.layers(f"{fake.host}/a:t")] == loaded


async def test_a_foreign_layer_that_the_archive_lacks(tmp_path: Path) -> None:
    layout = Layout()
    entry = layout.image(IMAGE)
    manifest = layout.blobs[f"blobs/sha256/{entry['digest'][7:]}"].replace(
        b'"layers": [{', b'"layers": [{"urls": ["https://elsewhere/layer"], '
    )
    layer = archives.hexes(gzip.compress(IMAGE.layers[0], 1, mtime=0))
    del layout.blobs[f"blobs/sha256/{layer}"]
    layout.add(layout.blob(manifest, archives.MANIFEST), NAME)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(DataLossError, match=r"foreign layer .*https://elsewhere/layer"):
            await load(service, layout.members())
        assert await left(service) == []


async def test_schema_1_is_refused_from_registry_and_archive(fake: FakeRegistry, tmp_path: Path) -> None:
    layout = Layout()
    old = b'{"schemaVersion": 1, "name": "a", "fsLayers": []}'
    layout.add(layout.blob(old, archives.MANIFEST), NAME)
    fake.manifests["t"] = ("application/vnd.docker.distribution.manifest.v1+prettyjws", old)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(UnimplementedError, match="schema 1"):
            await service.images.pull(f"{fake.host}/a:t")
        with pytest.raises(UnimplementedError, match="schema 1"):
            await load(service, layout.members())
        with pytest.raises(UnimplementedError, match=r"before 1\.10"):
            await load(service, [("repositories", b"{}"), ("abc/layer.tar", b""), ("abc/json", b"{}")])
        assert await left(service) == []


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


async def test_a_registry_that_lies_about_the_size_of_a_stored_blob(fake: FakeRegistry, tmp_path: Path) -> None:
    layer = fake.image("t", list(IMAGE.layers))["layers"][0]
    async with Service(str(tmp_path)) as service:
        identity = await service.images.pull(f"{fake.host}/a:t")
        config = fake.blob(fake.blobs[identity], archives.CONFIG)
        lying = {**layer, "size": layer["size"] + 1}
        fake.document({"config": config, "layers": [lying, fake.image("t", list(IMAGE.layers))["layers"][1]]}, "lie")
        with pytest.raises(DataLossError, match="the manifest says"):
            await service.images.pull(f"{fake.host}/a:lie")
