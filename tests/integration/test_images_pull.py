"""Pulls: requests, sharing, faults, and what is left afterwards."""

import asyncio
import errno
import gzip
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crishim.errors import (
    CrishimError,
    DataLossError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.content import Content
from crishim.images.fetch import Fetch
from tests.fakes.registry import INDEX, FakeRegistry, Handler
from tests.fakes.registry_images import Service
from tests.support import layout
from tests.support.layout import Entry, directory, tar
from tests.support.ports import free_port
from tests.support.registry import Registry

BIG = tar([directory("d"), Entry("d/noise", os.urandom(3_000_000))])
SMALL = tar([Entry("small", b"x")])


def _blobs(path: str = "/blobs/") -> Callable[[Handler], bool]:
    return lambda handler: path in handler.path


async def test_a_real_registry(registry: Registry, tmp_path: Path) -> None:
    layers = [[directory("a"), Entry("a/x", b"1" * 100_000)], [Entry("a/.wh.x"), Entry("y")]]
    plan = layout.ImagePlan(layers, {"Cmd": ["run"], "User": "1000", "StopSignal": "SIGQUIT"})
    identity = layout.write(str(tmp_path / "layout"), plan)
    reference = registry.push(str(tmp_path / "layout"), "pulls/demo:1")
    async with Service(str(tmp_path / "root")) as service:
        assert await service.images.pull(reference, None) == identity
        (image,) = service.images.list()
        assert (image.id, image.repo_tags, image.config.cmd) == (identity, (reference,), ("run",))
        (digest,) = image.repo_digests
        assert image.size > 100_000
        by_digest = service.images.find(digest)
        assert by_digest is image
        for name in (identity, identity.removeprefix("sha256:"), identity[7:20], reference):
            assert service.images.find(name) is image
        assert service.images.find("0" * 64) is None
        assert service.images.find("no/such:image") is None
        assert '"imageSpec"' in service.images.info(identity)["info"]
        usage = service.images.fs_usage()
        assert os.path.isdir(usage.mountpoint)
        assert usage.used_bytes > 100_000
        with pytest.raises(NotFoundError):
            await service.images.pull(f"{registry.host}/pulls/demo:absent")
        with pytest.raises(NotFoundError):
            await service.images.pull(f"{registry.host}/pulls/absent:1")
    async with Service(str(tmp_path / "root")) as service:
        (again,) = service.images.list()
        assert again == image
        assert service.observed.reclaimed == []
        await service.images.remove(digest)
        assert service.images.list() == []
        await service.images.remove(digest)
        await service.images.settled()
        assert service.files() == []


async def test_a_cached_image_costs_one_request(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG, SMALL])
    async with Service(str(tmp_path)) as service:
        assert await service.images.pull(f"{fake.host}/a:t") == made["id"]
        assert sorted(fake.bodies.values()) == [1, 1, 1]
        before = len(fake.requests)
        assert await service.images.pull(f"{fake.host}/a:t") == made["id"]
        assert await service.images.pull(f"{fake.host}/a@{made['digest']}") == made["id"]
        assert fake.requests[before:] == ["HEAD /v2/a/manifests/t", f"HEAD /v2/a/manifests/{made['digest']}"]
        assert [outcome for outcome, _ in service.observed.pulls] == ["ok", "cached", "cached"]
        moved = fake.image("t", [SMALL])
        assert await service.images.pull(f"{fake.host}/a:t") == moved["id"]
        old, new = (service.images.find(i) for i in (made["id"], moved["id"]))
        assert old is not None
        assert new is not None
        assert (old.repo_tags, new.repo_tags) == ((), (f"{fake.host}/a:t",))
        assert new.layers[0].directory == old.layers[1].directory


async def test_names_of_tag_and_digest(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    digest = f"{fake.host}/a@{made['digest']}"
    async with Service(str(tmp_path)) as service:
        await service.images.pull(digest)
        (image,) = service.images.list()
        assert (image.repo_tags, image.repo_digests) == ((), (digest,))
        await service.images.pull(f"{fake.host}/a:v1@{made['digest']}")
        await service.images.pull(f"{fake.host}/b:t")
        (image,) = service.images.list()
        assert image.repo_tags == (f"{fake.host}/a:v1", f"{fake.host}/b:t")
        results = await asyncio.gather(*(service.images.remove(f"{fake.host}/b:t") for _ in range(5)))
        assert results == [None] * 5
        assert service.images.list() == []
        with pytest.raises(InvalidArgumentError):
            await service.images.pull("docker.io/Foo/bar")


async def test_an_index_is_followed_to_this_platform(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("plain", [SMALL])
    mine = {"os": "linux", "architecture": layout.architecture()}
    unknown = {"os": "unknown", "architecture": "unknown"}
    good = {key: made[key] for key in ("mediaType", "digest", "size")}
    top = fake.document(
        {"manifests": [{**good, "digest": "sha256:" + "0" * 64, "platform": unknown}, {**good, "platform": mine}]},
        "multi",
        INDEX,
    )
    fake.document({"manifests": [good]}, "wrapped", INDEX)
    fake.document({"manifests": [{**good, "platform": {"os": "plan9", "architecture": "mips"}}]}, "other", INDEX)
    foreign = fake.image("foreign", [SMALL], architecture="s390x")
    async with Service(str(tmp_path)) as service:
        assert await service.images.pull(f"{fake.host}/a:multi") == made["id"]
        (image,) = service.images.list()
        assert image.repo_digests == (f"{fake.host}/a@{top['digest']}",)
        assert await service.images.pull(f"{fake.host}/a:wrapped") == made["id"]
        for tag, there in (("other", "plan9/mips"), ("foreign", "linux/s390x")):
            with pytest.raises(NotFoundError, match=there):
                await service.images.pull(f"{fake.host}/a:{tag}")
        assert service.images.find(foreign["id"]) is None


@pytest.mark.parametrize(
    ("pack", "media_type"),
    [
        (lambda data: data, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (gzip.compress, "application/vnd.docker.image.rootfs.diff.tar"),
        (zstandard.compress, "application/vnd.oci.image.layer.v1.tar+zstd"),
    ],
)
async def test_layers_are_what_their_bytes_are(
    fake: FakeRegistry, tmp_path: Path, pack: Callable[[bytes], bytes], media_type: str
) -> None:
    fake.image("t", [SMALL, b"", SMALL], pack=pack, media_type=media_type)
    async with Service(str(tmp_path)) as service:
        paths = await service.layers(f"{fake.host}/a:t")
        assert [os.listdir(path) for path in paths] == [[], ["small"]]
        (image,) = service.images.list()
        assert len(image.layers) == 3
        assert image.layers[0].directory == image.layers[2].directory


async def test_a_foreign_layer_comes_from_its_url(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    data = fake.blobs.pop(made["layers"][0]["digest"])
    elsewhere = {**made["layers"][0], "urls": [f"http://{fake.host}/elsewhere"]}
    config = {"mediaType": "x", "digest": made["id"], "size": len(fake.blobs[made["id"]])}
    fake.document({"config": config, "layers": [elsewhere]}, "foreign")
    fake.rules.append(lambda h: h.path == "/elsewhere" and h.answer(200, data))
    async with Service(str(tmp_path)) as service:
        assert len(await service.layers(f"{fake.host}/a:foreign")) == 1


# --- faults ----------------------------------------------------------------------------------------------------------


def _status(part: str, status: int) -> Callable[[Handler], bool]:
    return lambda h: part in h.path and h.answer(status, b'{"errors":[{"message":"words\\u0007"}]}')


def _other_bytes(handler: Handler) -> bool:
    if "/blobs/" not in handler.path:
        return False
    data = handler.registry.blobs[handler.path.rpartition("/")[2]]
    handler.answer(200, data[:-1] + bytes([data[-1] ^ 1]))
    return True


def _cut(handler: Handler) -> bool:
    if "/blobs/" not in handler.path:
        return False
    handler.answer(200, handler.registry.blobs[handler.path.rpartition("/")[2]][:-5])
    return True


def _breaks(handler: Handler) -> bool:
    if "/blobs/" not in handler.path:
        return False
    handler.break_off(b"", len(handler.registry.blobs[handler.path.rpartition("/")[2]]))
    return True


def _endless(handler: Handler) -> bool:
    if "/manifests/" not in handler.path:
        return False
    handler.break_off(b" " * (9 << 20), 1 << 40)
    return True


def _to_a_file(handler: Handler) -> bool:
    handler.answer(307, headers={"Location": "file:///etc/passwd"})
    return True


@pytest.mark.parametrize(
    ("rule", "kind", "part"),
    [
        (_status("/manifests/", 401), UnauthenticatedError, "denied"),
        (_status("/manifests/", 403), PermissionDeniedError, "words "),
        (_status("/manifests/", 404), NotFoundError, "words "),
        (_status("/blobs/", 404), NotFoundError, "blob sha256"),
        (_status("/manifests/", 503), UnavailableError, "RegistryUnavailable: "),
        (_status("/blobs/", 429), UnavailableError, "RegistryUnavailable: "),
        (_other_bytes, DataLossError, "digest"),
        (_cut, DataLossError, "bytes"),
        (_breaks, UnavailableError, "RegistryUnavailable: "),
        (_endless, DataLossError, "larger"),
        (_to_a_file, CrishimError, "file:///etc/passwd"),
    ],
)
async def test_faults_are_told_and_leave_no_trace(
    fake: FakeRegistry, tmp_path: Path, rule: Callable[[Handler], bool], kind: type[CrishimError], part: str
) -> None:
    fake.image("t", [BIG, SMALL])
    fake.rules.append(rule)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(kind) as caught:
            await service.images.pull(f"{fake.host}/a:t")
        assert part in str(caught.value)
        assert fake.host in str(caught.value)
        if part.startswith("RegistryUnavailable"):
            assert str(caught.value).startswith(part)
        await service.images.settled()
        assert service.files() == []
        assert service.images.fs_usage().used_bytes == 0
        fake.rules.clear()
        await service.images.pull(f"{fake.host}/a:t")


async def test_a_registry_that_is_away(tmp_path: Path) -> None:
    async with Service(str(tmp_path)) as service:
        with pytest.raises(UnavailableError, match=r"^RegistryUnavailable: .*refused"):
            await service.images.pull(f"127.0.0.1:{free_port()}/a:t")


async def test_a_wrong_diff_id_a_corrupt_layer_and_no_tar(fake: FakeRegistry, tmp_path: Path) -> None:
    other = [f"sha256:{hashlib.sha256(SMALL).hexdigest()}"]
    fake.image("diff", [BIG], rootfs={"diff_ids": other})
    fake.image("gzip", [BIG], pack=lambda data: gzip.compress(data)[:-2000])
    fake.image("text", [b"this is no tar archive" * 100])
    fake.image("count", [BIG], rootfs={"diff_ids": other * 2})
    async with Service(str(tmp_path)) as service:
        for tag, part in (("diff", "the image says"), ("gzip", "gzip"), ("text", "tar"), ("count", "2 diff ids")):
            with pytest.raises(DataLossError, match=part):
                await service.images.pull(f"{fake.host}/a:{tag}")
        await service.images.settled()
        assert service.files() == []


async def test_a_full_disk(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [BIG, tar([Entry(f"f{n}", bytes(50_000)) for n in range(60)])])
    fake.image("small", [SMALL])
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        async with Service(str(disk)) as service:
            with pytest.raises(ResourceExhaustedError, match="No space left"):
                await service.images.pull(f"{fake.host}/a:t")
            await service.images.settled()
            assert service.files() == []
            assert os.path.ismount(disk), "something else unmounted the test's disk"
            await service.images.pull(f"{fake.host}/a:small")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_a_store_that_vanishes_is_named_with_its_path(fake: FakeRegistry, tmp_path: Path) -> None:
    """What an unmounted image file system looks like to a running daemon."""
    fake.image("t", [SMALL])
    async with Service(str(tmp_path / "root")) as service:
        os.rename(tmp_path / "root" / "content", tmp_path / "away")
        with pytest.raises(InternalError, match=f"storing blob sha256:.*{tmp_path}/root/content/parts"):
            await service.images.pull(f"{fake.host}/a:t")
        os.rename(tmp_path / "away", tmp_path / "root" / "content")
        await service.images.pull(f"{fake.host}/a:t")


async def test_eight_pulls_with_every_third_request_failing(fake: FakeRegistry, tmp_path: Path) -> None:
    shared = [tar([Entry(f"f{n}", os.urandom(200_000))]) for n in range(9)]
    fake.image("one", [*shared, SMALL])
    fake.image("two", [*shared, BIG])
    counter = iter(range(10**6))
    fake.rules.append(lambda h: next(counter) % 3 == 2 and h.answer(500))
    async with Service(str(tmp_path)) as service:
        names = [f"{fake.host}/{repo}:{tag}" for repo in "ab" for tag in ("one", "two")]
        await asyncio.gather(*(service.images.pull(name) for name in names * 2))
        assert len(service.images.list()) == 2
        assert set(fake.bodies.values()) == {1}
        assert len([name for name in service.files() if name.startswith("layers/")]) == 11


class Gate:
    """Sends half of the blob and holds the rest until `open`."""

    def __init__(self, registry: FakeRegistry, size: int) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._size = size
        registry.rules.append(self.rule)

    def rule(self, handler: Handler) -> bool:
        data = handler.registry.blobs.get(handler.path.rpartition("/")[2], b"")
        if len(data) < self._size or handler.headers.get("Range") or self.open.is_set():
            return False
        half = len(data) // 2
        handler.answer(200, data[:half], {"Content-Length": str(len(data))})
        handler.wfile.flush()
        self.reached.set()
        self.open.wait(20)
        try:
            handler.wfile.write(data[half:])
        except OSError:
            handler.close_connection = True
        return True


async def _reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 20)


async def test_one_caller_leaves_and_the_others_do_not_notice(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [BIG])
    gate = Gate(fake, 1_000_000)
    async with Service(str(tmp_path)) as service:
        calls = [asyncio.create_task(service.images.pull(f"{fake.host}/{repo}:t")) for repo in "aab"]
        await _reached(gate)
        calls[0].cancel()
        await asyncio.sleep(0.05)
        await service.images.remove(f"{fake.host}/a:t")
        gate.open.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] == results[2]


@pytest.mark.parametrize("ranges", [True, False])
async def test_the_last_caller_leaves_and_the_next_resumes(fake: FakeRegistry, tmp_path: Path, ranges: bool) -> None:
    made = fake.image("t", [BIG])
    fake.ranges = ranges
    gate = Gate(fake, 1_000_000)
    async with Service(str(tmp_path)) as service:
        call = asyncio.create_task(service.images.pull(f"{fake.host}/a:t"))
        await _reached(gate)
        part = tmp_path / "content" / "parts" / made["layers"][0]["digest"].replace(":", "-")
        while part.stat().st_size < 1_000_000:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await service.images.settled()
        assert [name for name in service.files() if "parts" not in name] == []
        assert part.stat().st_size >= 1_000_000
        gate.open.set()
        await service.images.pull(f"{fake.host}/a:t")
        assert not part.exists()
        received = service.observed.pulls[1][1]
        assert received < len(fake.blobs[made["layers"][0]["digest"]])


async def test_a_part_that_is_no_good_is_fetched_anew(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG])
    async with Service(str(tmp_path)) as service:
        part = tmp_path / "content" / "parts" / made["layers"][0]["digest"].replace(":", "-")
        part.write_bytes(b"\x1f\x8b" + b"not what it was" * 1000)
        await service.images.pull(f"{fake.host}/a:t")
        assert fake.count("GET /v2/a/blobs") == 3


async def test_a_connection_that_breaks_is_resumed_within_the_pull(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG])
    digest = made["layers"][0]["digest"]
    breaks = iter(range(1000))

    def rule(handler: Handler) -> bool:
        if digest not in handler.path or next(breaks) > 4:
            return False
        data = fake.blobs[digest]
        first = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        span = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        handler.break_off(data[first : first + 600_000], len(data) - first, span, 206 if first else 200)
        return True

    fake.rules.append(rule)
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
    assert next(breaks) > 3


async def test_a_silent_server_is_given_up(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [BIG])
    gate = Gate(fake, 1_000_000)
    fake.ranges = False
    async with Service(str(tmp_path), stall_seconds=1, attempts=1) as service:
        with pytest.raises(UnavailableError, match="RegistryUnavailable"):
            await service.images.pull(f"{fake.host}/a:t")
        gate.open.set()


async def test_a_pull_cancelled_twice_does_not_work_on_the_next_ones_files(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that went on unheard would remove the part that the next pull of the same blob receives into."""
    fake.image("t", [SMALL])
    reached, release = threading.Event(), threading.Event()
    store = Fetch._store

    def held(fetch: Fetch, data: bytes) -> None:
        if not reached.is_set():
            reached.set()
            release.wait(20)
            raise OSError(errno.EIO, "a disk that fails late")
        store(fetch, data)

    monkeypatch.setattr(Fetch, "_store", held)
    async with Service(str(tmp_path)) as service:
        first = asyncio.create_task(service.images.pull(f"{fake.host}/a:t"))
        assert await asyncio.to_thread(reached.wait, 20)
        for _ in range(3):
            first.cancel()
            await asyncio.sleep(0.01)
        second = asyncio.create_task(service.images.pull(f"{fake.host}/a:t"))
        await asyncio.sleep(0.1)
        release.set()
        assert len(service.images.list()) == 0
        await second
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_what_a_full_disk_took_of_an_images_documents_is_collected(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake.image("t", [SMALL])
    wrapped = {key: made[key] for key in ("mediaType", "digest", "size")}
    fake.document({"manifests": [wrapped]}, "index", INDEX)
    put = Content.put

    def full(content: Content, digest: str, data: bytes) -> None:
        if digest == made["digest"]:
            raise ResourceExhaustedError("full")
        put(content, digest, data)

    monkeypatch.setattr(Content, "put", full)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(ResourceExhaustedError):
            await service.images.pull(f"{fake.host}/a:index")
        await service.images.settled()
        assert service.files() == []
