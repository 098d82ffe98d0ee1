"""Loading archives: every form that they come in, what they name, and what a pull gives besides."""

import asyncio
import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crishim.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from crishim.images.archive.api import Loaded
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support import archives
from tests.support.archives import (
    BASE,
    DOCKER_MANIFEST,
    IMAGE,
    INDEX,
    LAYER,
    NAME,
    Layout,
    Made,
    Members,
    left,
    load,
    made,
    pack,
)
from tests.support.layout import Entry, architecture

pytestmark = pytest.mark.usefixtures("extraction")


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
        assert [os.listdir(path) for path in paths] == [["x"], []]
        (found,) = service.images.list()
        first, second, *again = (layer.directory for layer in found.layers)
        assert again == [first, second]


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


# --- platforms and formats ----------------------------------------------------------------------


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


async def test_a_registry_that_lies_about_the_size_of_a_stored_blob(fake: FakeRegistry, tmp_path: Path) -> None:
    layer = fake.image("t", list(IMAGE.layers))["layers"][0]
    async with Service(str(tmp_path)) as service:
        identity = await service.images.pull(f"{fake.host}/a:t")
        config = fake.blob(fake.blobs[identity], archives.CONFIG)
        lying = {**layer, "size": layer["size"] + 1}
        fake.document({"config": config, "layers": [lying, fake.image("t", list(IMAGE.layers))["layers"][1]]}, "lie")
        with pytest.raises(DataLossError, match="the manifest says"):
            await service.images.pull(f"{fake.host}/a:lie")
