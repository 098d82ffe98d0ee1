"""Importing a root file system's tarball."""

import asyncio
import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zstandard

from crishim.errors import (
    CrishimError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from crishim.images.archive.api import Form, Order
from tests.fakes.registry_images import Service
from tests.support.abilities import need_program
from tests.support.archives import chunks, left, unheard
from tests.support.layout import Entry, architecture, directory, hardlink, tar

pytestmark = pytest.mark.usefixtures("extraction")
NAME = "docker.io/library/rootfs:1"
ROOT = tar(
    [directory("./"), directory("./bin"), Entry("./bin/sh", b"#" * 300_000, mode=0o755), hardlink("./l", "./bin/sh")]
)


@pytest.mark.parametrize(
    "packed",
    [lambda data: data, gzip.compress, zstandard.compress, lzma.compress, bz2.compress],
    ids=["plain", "gzip", "zstd", "xz", "bzip2"],
)
async def test_a_tarball_of_any_packing(tmp_path: Path, packed: Callable[[bytes], bytes]) -> None:
    order = Order("rootfs:1", ('CMD ["/bin/sh"]', "ENV A=1", "EXPOSE 80", "USER 5", "VOLUME /v"), "by hand")
    async with Service(str(tmp_path)) as service:
        identity, name = await service.images.archives.import_image(chunks(packed(ROOT)), order, unheard)
        assert name == NAME
        (image,) = service.images.list()
        assert (image.id, image.repo_tags, image.repo_digests) == (identity, (NAME,), ())
        assert (image.config.cmd, image.config.env, image.config.user) == (("/bin/sh",), ("A=1",), "5")
        assert image.config.volumes == ("/v",)
        assert (image.architecture, image.layers[0].media_type[-5:]) == (architecture(), "+gzip")
        assert image.layers[0].diff_id == f"sha256:{hashlib.sha256(ROOT).hexdigest()}"
        spec = json.loads(service.images.info(identity)["info"])["imageSpec"]
        assert spec["history"] == [{"created": spec["created"], "comment": "by hand"}]
        assert spec["config"]["ExposedPorts"] == {"80/tcp": {}}
        (layer,) = service.images.hold(identity, "test")
        assert os.stat(f"{layer}/l").st_nlink == 2
        blob = Path(f"{service.paths.content}/sha256/{image.layers[0].digest[7:]}").read_bytes()
        assert blob[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # no name, no time
        assert gzip.decompress(blob) == ROOT
    async with Service(str(tmp_path)) as service:
        assert service.images.list() == [image]
        assert service.observed.reclaimed == []


async def test_other_tools_read_an_imported_image(tmp_path: Path) -> None:
    skopeo = need_program("skopeo", "skopeo")
    async with Service(str(tmp_path / "root")) as service:
        await service.images.archives.import_image(chunks(ROOT), Order("rootfs:1", ("CMD run",)), unheard)
        data = b"".join([piece async for piece in service.images.archives.save(["rootfs:1"], Form.OCI)])
    (tmp_path / "saved.tar").write_bytes(data)
    source, target = f"oci-archive:{tmp_path}/saved.tar", f"oci:{tmp_path}/copied:tag"
    subprocess.run([skopeo, "--insecure-policy", "copy", source, target], check=True, capture_output=True)


async def test_without_a_name_and_for_another_machine(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        order = Order(platform="linux/s390x")
        identity, name = await service.images.archives.import_image(chunks(ROOT), order, unheard)
        assert name == ""
        (image,) = service.images.list()
        assert (image.id, image.repo_tags, image.architecture) == (identity, (), "s390x")


async def test_a_name_moves_to_the_new_image(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        first, _ = await service.images.archives.import_image(chunks(ROOT), Order("rootfs:1"), unheard)
        second, _ = await service.images.archives.import_image(chunks(ROOT), Order("rootfs:1", ("USER 1",)), unheard)
        tags = {image.id: image.repo_tags for image in service.images.list()}
        assert tags == {first: (), second: (NAME,)}
        assert len([name for name in service.files() if name.startswith("layers/")]) == 1


@pytest.mark.parametrize(
    ("data", "order", "kind", "part"),
    [
        (b"", Order(), DataLossError, "the tarball is empty"),
        (gzip.compress(b""), Order(), DataLossError, "the tarball is empty"),
        (b"no tar " * 1000, Order(), DataLossError, "tar"),
        (ROOT[:100_000], Order(), DataLossError, "truncated"),
        (gzip.compress(ROOT)[:-20], Order(), DataLossError, "too early|corrupt"),
        (lzma.compress(ROOT)[:-20], Order(), DataLossError, "xz data end too early"),
        (bz2.compress(ROOT)[:-20], Order(), DataLossError, "bzip2"),
        (lzma.compress(ROOT) + b"words", Order(), DataLossError, "corrupt xz"),
        (b"PK\x03\x04" + bytes(1000), Order(), FailedPreconditionError, "zip"),
        (tar([hardlink("h", "../../../../etc/passwd")]), Order(), DataLossError, "passwd"),
        (lzma.compress(bytes(100 << 20)), Order(), ResourceExhaustedError, "max_ratio"),
        (zstandard.compress(tar([Entry("z", bytes(6 << 20))])), Order(), ResourceExhaustedError, "max_layer_bytes"),
        (ROOT, Order("No/Such"), InvalidArgumentError, r"options\.name"),
        (ROOT, Order(f"a@sha256:{'0' * 64}"), InvalidArgumentError, r"options\.name"),
        (ROOT, Order(changes=("RUN x",)), InvalidArgumentError, r"options\.changes\[0\]"),
        (ROOT, Order(platform="plan9"), InvalidArgumentError, r"options\.platform"),
        (ROOT, Order(message="a\0b"), InvalidArgumentError, r"options\.message"),
    ],
)
async def test_a_bad_tarball_is_told_and_leaves_nothing(
    tmp_path: Path, data: bytes, order: Order, kind: type[CrishimError], part: str
) -> None:
    largest = 5 << 20 if "max_layer" in part else 1 << 40
    async with Service(str(tmp_path), max_ratio=200, max_layer_bytes=largest) as service:
        with pytest.raises(kind, match=part):
            await service.images.archives.import_image(chunks(data), order, unheard)
        assert await left(service) == []
        assert service.images.list() == []


async def test_a_caller_who_leaves_leaves_nothing(tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield ROOT[:200_000]
        reached.set()
        await asyncio.Event().wait()

    async with Service(str(tmp_path)) as service:
        importing = asyncio.create_task(service.images.archives.import_image(hanging(), Order("a"), unheard))
        await reached.wait()
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
        assert await left(service) == []


async def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=True)
    try:
        async with Service(str(tmp_path)) as service:
            for size in (3_000_000, 6_000_000):
                noise = tar([Entry("noise", os.urandom(size))])
                with pytest.raises(ResourceExhaustedError, match="No space left"):
                    await service.images.archives.import_image(chunks(noise), Order("a"), unheard)
                assert await left(service) == []
            await service.images.archives.import_image(chunks(ROOT), Order("a"), unheard)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
