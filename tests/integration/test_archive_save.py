"""Saving images, and round trips through skopeo and umoci: the same image, the same tree."""

import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crishim.errors import DataLossError, InvalidArgumentError, NotFoundError
from crishim.images.archive.api import Form
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support import archives
from tests.support.abilities import need_program
from tests.support.archives import DOCKER_MANIFEST, NAME, Layout, chunks, made, pack, unheard
from tests.support.layout import Entry, tar
from tests.support.registry import Registry

pytestmark = pytest.mark.usefixtures("extraction")
FORMS = list(Form)


def _member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.mtime = kind, len(data), 0o644, 1_600_000_000
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def everything() -> bytes:
    """Return a layer with all that a file system has."""
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    xattrs = {
        "SCHILY.xattr.user.words": "value",
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in (
            _member("d", tarfile.DIRTYPE, mode=0o1777, uid=3),
            _member("d/file", data=b"x" * 5000, uid=1000, gid=1001, mode=0o4755, pax_headers=xattrs),
            _member("d/hard", tarfile.LNKTYPE, linkname="d/file"),
            _member("d/link", tarfile.SYMTYPE, linkname="../d/file", mode=0o777),
            _member("d/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            _member("d/disk", tarfile.BLKTYPE, devmajor=7, devminor=0),
            _member("d/fifo", tarfile.FIFOTYPE),
            _member("d/ünïcode " + "n" * 120, data=b"long"),
            _member("d/old", data=b"old", mtime=1),
        ):
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tree(top: str) -> dict[str, tuple[object, ...]]:
    """Return what is to be known of each file below a directory."""
    found: dict[str, tuple[object, ...]] = {}
    for base, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            info = os.lstat(path)
            data: object = None
            if stat.S_ISREG(info.st_mode):
                data = Path(path).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                data = os.readlink(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            time = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
            links = 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink
            owner = (info.st_mode, info.st_uid, info.st_gid, info.st_rdev)
            found[os.path.relpath(path, top)] = (*owner, links, time, data, xattrs)
    return found


FULL = made(everything(), [Entry("top", b"t")], Cmd=["/run"], User="7", Env=["A=1"], Labels={"l": "ö"})


async def load(service: Service, data: bytes) -> Sequence[Any]:
    return await service.images.archives.load(chunks(data), "", unheard)


async def save(service: Service, *names: str, form: Form = Form.DOCKER) -> bytes:
    return b"".join([piece async for piece in service.images.archives.save(names, form)])


def skopeo(*words: str) -> str:
    program = need_program("skopeo", "skopeo")
    done = subprocess.run([program, "--insecure-policy", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_an_archive_is_the_same_whenever_it_is_made(tmp_path: Path, form: Form) -> None:
    other = made([Entry("other")])
    source = pack(archives.docker_old({FULL: [NAME, "b:2"], other: ["c"]}))
    async with Service(str(tmp_path / "one")) as service:
        await load(service, source)
        once = await save(service, "c", "b:2", NAME, form=form)
        assert await save(service, NAME, NAME, "c", "b:2", form=form) == once
    async with Service(str(tmp_path / "two")) as service:
        await load(service, once)
        assert await save(service, NAME, "b:2", "c", form=form) == once
    with tarfile.open(fileobj=io.BytesIO(once)) as archive:
        names = archive.getnames()
        assert len(names) == len(set(names))
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}
        assert ("manifest.json" in names) == (form is Form.DOCKER)
    assert len(once) % 10_240 == 0


async def test_blobs_go_in_as_they_came(fake: FakeRegistry, tmp_path: Path) -> None:
    """Docker's schema 2 and zstd too: the manifest has its digest still."""
    layout = Layout()
    layer_type = "application/vnd.docker.image.rootfs.diff.tar.zstd"
    entry = layout.image(FULL, zstandard.compress, layer_type, DOCKER_MANIFEST)
    fake.blobs.update({archives.sha(data): data for data in layout.blobs.values()})
    fake.manifests["t"] = (DOCKER_MANIFEST, layout.blobs[f"blobs/sha256/{entry['digest'][7:]}"])
    async with Service(str(tmp_path / "one")) as service:
        await service.images.pull(f"{fake.host}/a:t")
        data = await save(service, f"{fake.host}/a:t", form=Form.OCI)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        inside = {m.name: file.read() for m in archive if (file := archive.extractfile(m))}
    index = json.loads(inside.pop("index.json"))
    assert inside.pop("oci-layout") == b'{"imageLayoutVersion":"1.0.0"}'
    assert inside == layout.blobs
    assert [(e["digest"], e["mediaType"]) for e in index["manifests"]] == [(entry["digest"], DOCKER_MANIFEST)]
    async with Service(str(tmp_path / "two")) as service:
        (loaded,) = await load(service, data)
        image = service.images.find(loaded.id)
        assert image is not None
        assert image.repo_digests == (f"{fake.host}/a@{entry['digest']}",)


async def test_which_names_an_image_keeps(tmp_path: Path) -> None:
    async with Service(str(tmp_path / "one")) as service:
        await load(service, pack(archives.docker_old({FULL: [NAME, "b:2"]})))
        for asked, kept in (
            ([NAME], (NAME,)),
            (["demo:1", "b:2"], ("docker.io/library/b:2", NAME)),
            ([FULL.id], ()),
            ([FULL.id[7:17], "b:2"], ("docker.io/library/b:2",)),
        ):
            for form in FORMS:
                data = await save(service, *asked, form=form)
                async with Service(str(tmp_path / "two")) as other:
                    (loaded,) = await load(other, data)
                    assert (loaded.id, loaded.names) == (FULL.id, kept)
                    await other.images.remove(FULL.id)


async def test_what_cannot_be_saved(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        await load(service, pack(archives.docker_old({FULL: [NAME]})))
        with pytest.raises(InvalidArgumentError, match="images"):
            await save(service)
        with pytest.raises(NotFoundError, match="absent"):
            await save(service, NAME, "absent")
        with pytest.raises(InvalidArgumentError, match="lower case"):
            await save(service, "No/Such")
        layer = service.images.list()[0].layers[0].digest
        path = f"{service.paths.content}/sha256/{layer[7:]}"
        for damage in (Path(path).read_bytes()[:-1] + b"~", b"short", Path(path).read_bytes() + b"more"):
            Path(path).write_bytes(damage)
            with pytest.raises(DataLossError, match="damaged"):
                await save(service, NAME)
        os.unlink(path)
        with pytest.raises(DataLossError, match="pull the image again"):
            await save(service, NAME)


async def test_an_image_that_is_removed_while_it_is_saved(tmp_path: Path) -> None:
    big = made([Entry("noise", os.urandom(3 << 20))])
    async with Service(str(tmp_path)) as service:
        await load(service, pack(archives.docker_old({big: [NAME]})))
        whole = await save(service, NAME)
        pieces = service.images.archives.save([NAME], Form.DOCKER)
        data = await anext(pieces)
        await service.images.remove(NAME)
        data += b"".join([piece async for piece in pieces])
        assert data == whole
        pieces = service.images.archives.save([NAME], Form.DOCKER)
        with pytest.raises(NotFoundError):
            await anext(pieces)
        await service.images.settled()
        assert service.files() == []


async def test_a_reader_who_leaves_lets_go_of_the_image(tmp_path: Path) -> None:
    big = made([Entry("noise", os.urandom(3 << 20))])
    async with Service(str(tmp_path)) as service:
        await load(service, pack(archives.docker_old({big: [NAME]})))
        pieces = service.images.archives.save([NAME], Form.DOCKER)
        assert max([len(await anext(pieces))], default=0) < 3 << 20
        await service.images.remove(NAME)
        await pieces.aclose()
        await service.images.settled()
        assert service.files() == []


# --- other tools -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_skopeo_reads_what_was_saved_and_gives_it_back(tmp_path: Path, form: Form) -> None:
    file = tmp_path / "saved.tar"
    async with Service(str(tmp_path / "root")) as service:
        await load(service, pack(archives.oci(FULL, NAME)))
        file.write_bytes(await save(service, NAME, form=form))
        ours = [tree(path) for path in service.images.hold(FULL.id, "test")]
    for number, source in enumerate((f"{form.value}:{file}", f"{form.value}:{file}:{NAME}")):
        config = subprocess.run(["skopeo", "inspect", "--config", "--raw", source], check=True, capture_output=True)
        assert config.stdout == FULL.config
        back = tmp_path / f"back{number}.tar"
        skopeo("copy", source, f"{form.value}:{back}:{NAME}")
        async with Service(str(tmp_path / f"root{number}")) as service:
            (loaded,) = await load(service, back.read_bytes())
            assert (loaded.id, loaded.names) == (FULL.id, (NAME,))
            assert [tree(path) for path in service.images.hold(FULL.id, "test")] == ours
    # skopeo writes a docker-archive's config anew for an OCI layout: another id, the same layers.
    skopeo("copy", f"{form.value}:{file}", f"oci:{tmp_path}/copied:tag")
    config = json.loads(skopeo("inspect", "--config", "--raw", f"oci:{tmp_path}/copied:tag"))
    assert config["rootfs"]["diff_ids"] == [archives.sha(layer) for layer in FULL.layers]


async def test_skopeo_reads_an_image_of_dockers_schema_2(tmp_path: Path) -> None:
    layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    layout = Layout()
    layout.add(layout.image(FULL, layer_type=layer_type, media_type=DOCKER_MANIFEST), NAME)
    async with Service(str(tmp_path / "root")) as service:
        await load(service, pack(layout.members()))
        for form in FORMS:
            file = tmp_path / form.value
            file.write_bytes(await save(service, NAME, form=form))
            skopeo("copy", f"{form.value}:{file}", f"oci:{tmp_path}/{form.value}-copied:tag")
            # By its name skopeo finds only what has OCI's media types in a layout; the manifest keeps its digest here.
        skopeo("copy", f"docker-archive:{tmp_path}/docker-archive:{NAME}", f"oci:{tmp_path}/named:tag")


async def test_umoci_unpacks_the_same_tree(tmp_path: Path) -> None:
    umoci = need_program("umoci", "umoci")
    single = made(everything())
    async with Service(str(tmp_path / "root")) as service:
        await load(service, pack(archives.docker_old({single: [NAME]})))
        (tmp_path / "saved.tar").write_bytes(await save(service, NAME, form=Form.OCI))
        (layer,) = service.images.hold(single.id, "test")
        skopeo("copy", f"oci-archive:{tmp_path}/saved.tar", f"oci:{tmp_path}/copied:tag")
        subprocess.run(
            [umoci, "raw", "unpack", "--image", f"{tmp_path}/copied:tag", f"{tmp_path}/tree"],
            check=True,
            capture_output=True,
        )
        theirs, ours = tree(f"{tmp_path}/tree"), tree(layer)
        assert theirs == ours
        # And an image that umoci has changed is loaded here.
        subprocess.run(
            [umoci, "insert", "--image", f"{tmp_path}/copied:tag", "--tag", "more", f"{tmp_path}/saved.tar", "/added"],
            check=True,
            capture_output=True,
        )
        skopeo("copy", f"oci:{tmp_path}/copied:more", f"oci-archive:{tmp_path}/more.tar:localhost/more:1")
        (loaded,) = await load(service, (tmp_path / "more.tar").read_bytes())
        assert loaded.names == ("localhost/more:1",)
        bottom, top = service.images.hold(loaded.id, "more")
        assert (tree(bottom), os.listdir(top)) == (ours, ["added"])


async def test_an_image_goes_from_registry_to_archive_to_registry(registry: Registry, tmp_path: Path) -> None:
    """What is pushed after a save and a load has the digest that was pulled; a docker-archive's manifest is ours."""
    (tmp_path / "in.tar").write_bytes(pack(archives.oci(FULL)))
    name = f"{registry.host}/archives/demo"
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{tmp_path}/in.tar", f"docker://{name}:1")
    async with Service(str(tmp_path / "one")) as service:
        await service.images.pull(f"{name}:1")
        (digest,) = service.images.list()[0].repo_digests
        saved = {form: await save(service, f"{name}:1", form=form) for form in FORMS}
    for form in FORMS:
        async with Service(str(tmp_path / form.value)) as service:
            await load(service, saved[form])
            assert service.images.list()[0].repo_digests == (digest,)
            pushed = await service.images.push(f"{name}:1", f"{name}:{form.value}", None, unheard)
            assert pushed.digest == digest.partition("@")[2]
    async with Service(str(tmp_path / "old")) as service:
        await load(service, pack(archives.docker_old({FULL: [f"{name}:old"]})))
        await service.images.push(f"{name}:old", "", None, unheard)
    config = skopeo("inspect", "--tls-verify=false", "--config", "--raw", f"docker://{name}:old")
    assert archives.sha(config.encode()) == FULL.id


async def test_a_directory_of_skopeo_packed_by_tar(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(pack(archives.oci(FULL)))
    skopeo("copy", f"oci-archive:{tmp_path}/in.tar", f"oci:{tmp_path}/lay:localhost/packed:1")
    for words in (("-C", str(tmp_path / "lay"), "."), ("-C", str(tmp_path), "lay")):
        data = subprocess.run(["tar", "-czf", "-", *words], check=True, capture_output=True).stdout
        async with Service(str(tmp_path / "root")) as service:
            (loaded,) = await load(service, data)
            assert (loaded.id, loaded.names) == (FULL.id, ("localhost/packed:1",))
            await service.images.remove(FULL.id)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["", "e", "sess", "sexes"])
async def test_an_image_that_lists_layers_again_or_none_goes_through_an_archive(
    fake: FakeRegistry, tmp_path: Path, form: Form, order: str
) -> None:
    layers = {"e": tar([]), "s": tar([Entry("one", b"s")]), "x": tar([Entry("one", b"x")])}
    made = fake.image("t", [layers[which] for which in order])
    async with Service(str(tmp_path / "one")) as service:
        await service.images.pull(f"{fake.host}/a:t")
        data = await save(service, f"{fake.host}/a:t", form=form)
    async with Service(str(tmp_path / "two")) as service:
        await load(service, data)
        (image,) = service.images.list()
        assert (image.id, len(image.layers)) == (made["id"], len(order))
        held = service.images.hold(image.id, "test")
        assert len(held) == len(set(held)) == len(set(order))
        service.images.release("test")
