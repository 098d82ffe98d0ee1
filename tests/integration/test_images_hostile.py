"""Hostile registries and layers: each ends in one clear error and no trace, or does no harm (issue 5, part 6).

What the archive's own headers can do is in the unit tests of the reader; the fuzzers stand beside them.
"""

import asyncio
import gzip
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crishim.errors import CrishimError, DataLossError, ResourceExhaustedError
from tests.fakes.registry import INDEX, FakeRegistry, Handler
from tests.fakes.registry_images import Service, overlay
from tests.support.layout import Entry, directory, hardlink, symlink, tar

SMALL = tar([Entry("small", b"x")])
SECRET = "outside"
_CHECKOUT = Path(__file__).resolve().parents[2]
Rule = Callable[[Handler], bool]


async def _refused(fake: FakeRegistry, root: Path, kind: type[CrishimError], part: str, **limits: Any) -> None:
    """Pull the image `t`, which must fail, and see that nothing of it is left."""
    async with Service(str(root), **limits) as service:
        with pytest.raises(kind, match=part) as caught:
            await service.images.pull(f"{fake.host}/a:t")
        assert len(str(caught.value)) < 2000
        await service.images.settled()
        assert service.files() == []
        assert service.images.fs_usage().used_bytes == 0
        assert service.images.list() == []


# --- layers ----------------------------------------------------------------------------------------------------------


def _escapes(outside: str) -> dict[str, list[list[Entry]]]:
    """Layers, lowest first, that try to reach `outside`, a directory of the host."""
    up = "../" * 20 + outside.strip("/")
    return {
        "absolute name": [[Entry(f"{outside}/pwned", b"!")]],
        "climbing name": [[Entry(f"{up}/pwned", b"!")]],
        "absolute link": [[symlink("x", outside), Entry("x/pwned", b"!")]],
        "climbing link": [[symlink("x", up), Entry("x/pwned", b"!")]],
        "link to a link": [[symlink("x", outside), symlink("y", "x"), Entry("y/pwned", b"!")]],
        "hard link to a link": [[symlink("x", outside), hardlink("y", "x"), Entry("y/pwned", b"!")]],
        "file over a link": [[symlink("x", f"{outside}/pwned"), Entry("x", b"!")]],
        "directory over a link": [[symlink("x", outside), directory("x", mode=0o777), Entry("x/pwned", b"!")]],
        "device through a link": [[symlink("x", outside), Entry("x/pwned", kind=tarfile.CHRTYPE, device=(1, 3))]],
        "link through a link": [[symlink("x", outside), symlink("x/pwned", "/")]],
        "link of the layer below": [[symlink("x", outside)], [Entry("x/pwned", b"!")]],
        "whiteout through a link": [[symlink("x", outside), Entry(f"x/.wh.{SECRET}")]],
        "whiteout through a link below": [[symlink("x", outside)], [Entry(f"x/.wh.{SECRET}")]],
        "opaque through a link": [[symlink("x", outside), Entry("x/.wh..wh..opq")]],
        "opaque through a link below": [[symlink("x", outside)], [Entry("x/.wh..wh..opq")]],
        "swapped parent": [[directory("x")], [symlink("x", outside)], [Entry("x/pwned", b"!")]],
        "parent that becomes a link later": [[Entry("x/a", b"!")], [symlink("x", outside), Entry("x/pwned", b"!")]],
    }


@pytest.mark.parametrize("case", _escapes("/"))
async def test_links_in_every_form_stay_inside(fake: FakeRegistry, tmp_path: Path, case: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / SECRET).write_text("kept", encoding="utf-8")
    before = (os.stat(outside), (outside / SECRET).stat())
    fake.image("t", [tar(layer) for layer in _escapes(str(outside))[case]])
    async with Service(str(tmp_path / "root")) as service:
        paths = await service.layers(f"{fake.host}/a:t")
        found = overlay(paths, "find . -name pwned").split()
        assert os.listdir(outside) == [SECRET]
        after = (os.stat(outside), (outside / SECRET).stat())
        assert [(s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink) for s in before] == [
            (s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink) for s in after
        ]
        assert bool(found) == ("opaque" not in case and "whiteout" not in case and case != "file over a link")


@pytest.mark.parametrize("name", ["hard link through a link", "hard link by an absolute name", "hard link that climbs"])
async def test_a_hard_link_never_reaches_a_file_of_the_host(fake: FakeRegistry, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept", encoding="utf-8")
    layers = {
        "hard link through a link": [symlink("x", str(tmp_path)), hardlink("y", "x/secret")],
        "hard link by an absolute name": [hardlink("y", str(secret))],
        "hard link that climbs": [hardlink("y", "../" * 20 + str(secret).strip("/"))],
    }
    fake.image("t", [SMALL, tar(layers[name])])
    await _refused(fake, tmp_path / "root", DataLossError, "no layer has as a file")
    assert secret.stat().st_nlink == 1


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
async def test_bombs_are_stopped_by_ratio_and_by_size(
    fake: FakeRegistry, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    fake.image("t", [tar([Entry("zeros", bytes(30_000_000))])], pack=pack)
    ratio: dict[str, Any] = {"max_ratio": 100, "ratio_floor_bytes": 1_000_000}
    await _refused(fake, tmp_path / "one", ResourceExhaustedError, "max_ratio", **ratio)
    await _refused(fake, tmp_path / "two", ResourceExhaustedError, "max_layer_bytes", max_layer_bytes=10_000_000)


async def test_a_million_entries(fake: FakeRegistry, tmp_path: Path) -> None:
    """Of which as many are read as are allowed: 1 M headers of half a kilobyte pack into two megabytes."""
    block = tar([directory("d")])[:512]
    layer = block * 1_000_000
    fake.image("t", [layer], pack=zstandard.compress)
    await _refused(fake, tmp_path, DataLossError, "more than 20000 entries", max_entries=20_000, max_ratio=1 << 40)


@pytest.mark.parametrize("cut", [100, 512, 700, 1024 + 3])
async def test_a_truncated_archive_in_a_whole_stream(fake: FakeRegistry, tmp_path: Path, cut: int) -> None:
    fake.image("t", [tar([Entry("f", b"!" * 5000)])[:cut]])
    await _refused(fake, tmp_path, DataLossError, "truncated")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
async def test_a_truncated_stream(fake: FakeRegistry, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    fake.image("t", [tar([Entry("f", os.urandom(300_000))])], pack=lambda data: pack(data)[:-1000])
    await _refused(fake, tmp_path, DataLossError, r"ends? too early|corrupt|digest")


@pytest.mark.parametrize("name", ["\udcff\n" * 50, "\udcff" * 250])
async def test_names_in_errors_can_be_sent_and_logged(fake: FakeRegistry, tmp_path: Path, name: str) -> None:
    fake.image("t", [tar([Entry("d/x", b"x"), Entry(f"d/x/{name}"), hardlink(f"{name}.", f"../{name}")])])
    async with Service(str(tmp_path)) as service:
        with pytest.raises(DataLossError) as caught:
            await service.images.pull(f"{fake.host}/a:t")
        assert str(caught.value).isprintable()
        str(caught.value).encode()


async def test_names_too_long_and_trees_too_deep(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [tar([Entry("n" * 300)])])
    await _refused(fake, tmp_path / "one", DataLossError, "File name too long")
    fake.image("t", [tar([Entry("d/" * 2500 + "f")])])
    await _refused(fake, tmp_path / "two", DataLossError, "File name too long")
    fake.image("t", [tar([Entry("d/" * 1900 + "f", b"deep")])])
    async with Service(str(tmp_path / "three")) as service:
        (path,) = await service.layers(f"{fake.host}/a:t")
        assert overlay((path,), "find . -name f | wc -c").strip() == str(2 + 2 * 1900 + 2)
        await service.images.remove(f"{fake.host}/a:t")
        service.images.release("test")
        await service.images.settled()
        # Also since pytest's own clean-up, later on, cannot remove such a tree and leaves iterators open.
        assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.usefixtures("extraction")
def test_a_million_entries_are_unpacked_in_little_memory(tmp_path: Path) -> None:
    command = ["unshare", "-m", sys.executable, "-m", "tests.support.many_entries", str(tmp_path), "1000000"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=_CHECKOUT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found.get("ok"), found["files"], found["inodes"]) == (True, 1_000_000, 1_000_201), found
    assert found["peak_bytes"] < 48 << 20


# --- registries ------------------------------------------------------------------------------------------------------


def _blob(handler: Handler) -> bytes:
    return handler.registry.blobs.get(handler.path.rpartition("/")[2], b"")


def _endless(piece: bytes = bytes(1 << 16)) -> Iterator[bytes]:
    return itertools.repeat(piece)


def _longer(handler: Handler) -> bool:
    return "/blobs/" in handler.path and handler.chunked([_blob(handler), b"more"])


def _shorter(handler: Handler) -> bool:
    return "/blobs/" in handler.path and handler.chunked([_blob(handler)[:-3]])


def _endless_blob(handler: Handler) -> bool:
    return "/blobs/" in handler.path and handler.chunked(itertools.chain([_blob(handler)], _endless()))


def _endless_manifest(handler: Handler) -> bool:
    return "/manifests/" in handler.path and handler.chunked(_endless(b" " * 65536))


def _lying_digest(handler: Handler) -> bool:
    digest = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    data = next(iter(handler.registry.manifests.values()))[1]
    return "/manifests/" in handler.path and handler.answer(200, data, digest)


def _other_range(handler: Handler) -> bool:
    if "/blobs/" not in handler.path:
        return False
    if handler.headers.get("Range"):
        return handler.answer(206, b"x" * 10, {"Content-Range": "bytes 1-10/11"})
    data = _blob(handler)
    handler.break_off(data[: len(data) // 2], len(data))
    return True


def _long_header(handler: Handler) -> bool:
    return handler.answer(200, b"{}", {"X-Long": "x" * 100_000})


def _many_headers(handler: Handler) -> bool:
    return handler.answer(200, b"{}", {f"X-{n}": "x" for n in range(1000)})


def _no_http(handler: Handler) -> bool:
    handler.wfile.write(b"\0\xff" * 1000)
    handler.close_connection = True
    return True


def _in_circles(handler: Handler) -> bool:
    return handler.answer(307, headers={"Location": handler.path})


def _to(location: str) -> Rule:
    return lambda handler: handler.answer(302, headers={"Location": location})


def _endless_token(handler: Handler) -> bool:
    if handler.path.startswith("/token"):
        return handler.chunked(_endless(b" " * 65536))
    challenge = f'Bearer realm="http://{handler.headers["Host"]}/token",service="x"'
    return handler.answer(401, headers={"WWW-Authenticate": challenge})


def _odd_token(handler: Handler) -> bool:
    if handler.path.startswith("/token"):
        return handler.answer(200, b'{"token": "t", "expires_in": ' + b"9" * 400 + b"}")
    challenge = f'Bearer realm="http://{handler.headers["Host"]}/token",service="x"'
    return handler.answer(401, headers={"WWW-Authenticate": challenge})


def _odd_pause(handler: Handler) -> bool:
    return handler.answer(503, headers={"Retry-After": "\u00b2"})


def _odd_length(handler: Handler) -> bool:
    if "/blobs/" not in handler.path:
        return False
    handler.answer(200, b"x" * 70_000, {"Content-Length": "\u00b2"})
    handler.close_connection = True
    return True


def _odd_range(handler: Handler) -> bool:
    if handler.headers.get("Range"):
        return handler.answer(206, b"x" * 10, {"Content-Range": "bytes \u00b2-10/11"})
    return _other_range(handler)


def _endless_error(handler: Handler) -> bool:
    return handler.chunked(_endless(b'{"errors":[{"message":"' + b"x" * 65536), 403)


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (_longer, "is longer than its"),
        (_shorter, "ends after"),
        (_endless_blob, "is longer than its"),
        (_endless_manifest, "is larger than the limit"),
        (_lying_digest, "not sha256:0000"),
        (_other_range, "another range"),
        (_long_header, "."),
        (_many_headers, "."),
        (_no_http, "."),
        (_in_circles, "more than 10 redirects"),
        (_to("file:///etc/shadow"), "no http or https URL"),
        (_to("ftp://127.0.0.1/x"), "no http or https URL"),
        (_to("http://[::1"), "no http or https URL"),
        (_endless_token, "."),
        (_endless_error, "access denied"),
        (_odd_token, "holds no token"),
        (_odd_pause, "HTTP 503"),
        (_odd_length, "longer than its"),
        (_odd_range, "another range"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_registry_that_lies(fake: FakeRegistry, tmp_path: Path, rule: Rule, part: str) -> None:
    fake.image("t", [tar([Entry("f", os.urandom(50_000))])])
    fake.rules.append(rule)
    await _refused(fake, tmp_path, CrishimError, part, attempts=2)


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
async def test_a_manifest_that_lies_about_sizes(fake: FakeRegistry, tmp_path: Path, change: int) -> None:
    made = fake.image("t", [SMALL])
    config = {"mediaType": "x", "digest": made["id"], "size": len(fake.blobs[made["id"]])}
    layer = {**made["layers"][0], "size": made["layers"][0]["size"] + change}
    fake.document({"config": config, "layers": [layer]}, "t")
    await _refused(fake, tmp_path, DataLossError, "the manifest says")


async def test_indexes_within_indexes(fake: FakeRegistry, tmp_path: Path) -> None:
    inner = fake.image("t", [SMALL])
    for depth in range(8):
        entry = {key: inner[key] for key in ("mediaType", "digest", "size")}
        inner = fake.document({"manifests": [entry]}, "t", INDEX)
        if depth == 3:
            async with Service(str(tmp_path / "four")) as service:
                await service.images.pull(f"{fake.host}/a:t")
    await _refused(fake, tmp_path / "eight", DataLossError, "indexes within each other")
    assert fake.count("GET /v2/a/manifests") < 12


async def test_a_wide_index_of_indexes_costs_few_requests(fake: FakeRegistry, tmp_path: Path) -> None:
    """Entries without a platform are looked into, but not each of them on each level: 16 to the fourth."""
    wide = [fake.document({"manifests": [], "annotations": {"n": str(n)}}, media_type=INDEX) for n in range(40)]
    for level in range(2):
        wide = [
            fake.document({"manifests": wide, "annotations": {"n": f"{level} {n}"}}, media_type=INDEX)
            for n in range(40)
        ]
    fake.document({"manifests": wide}, "t", INDEX)
    await _refused(fake, tmp_path, DataLossError, "more than 64 manifests")
    assert fake.count("GET /v2/a/manifests") <= 100


async def test_eight_pulls_of_one_image_from_a_registry_that_fails_every_third_request(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    """The requests fail in turn by status, by a pause that is asked for, and by a body that breaks off."""
    layers = [tar([Entry(f"f{n}", os.urandom(400_000))]) for n in range(6)]
    made = fake.image("t", layers)
    lock = threading.Lock()
    requests = itertools.count(1)
    failures = itertools.cycle(["status", "busy", "break"])
    broken: Counter[str] = Counter()

    def every_third(handler: Handler) -> bool:
        with lock:
            if next(requests) % 3:
                return False
            failure = next(failures)
            data = _blob(handler)
            digest = handler.path.rpartition("/")[2]
            first = int(handler.headers.get("Range", "bytes=0-")[6:-1])
            half = data[first : first + (len(data) - first) // 2]
            broken[digest] += len(half) if failure == "break" else 0
        if failure == "status":
            return handler.answer(500)
        if failure == "busy":
            return handler.answer(429, headers={"Retry-After": "0"})
        span = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        handler.break_off(half, max(len(data) - first, 10), span, 206 if first else 200)
        return True

    fake.rules.append(every_third)
    async with Service(str(tmp_path)) as service:
        # Four repositories, so that the pulls cannot all be one: blobs and layers are shared all the same.
        names = [f"{fake.host}/{repository}:t" for repository in "abcd"] * 2
        assert await asyncio.gather(*(service.images.pull(name) for name in names)) == [made["id"]] * 8
        assert len(service.images.hold(made["id"], "test")) == 6
        (image,) = service.images.list()
        assert len(image.repo_tags) == 4
    for digest, data in fake.blobs.items():
        assert fake.sent[digest] + broken[digest] == len(data), "each byte of a blob is sent once"
        assert hashlib.sha256((tmp_path / "content/sha256" / digest[7:]).read_bytes()).hexdigest() == digest[7:]
    assert next(requests) > 12


async def test_documents_that_are_no_images(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    layer, config = made["layers"][0], {"mediaType": "x", "digest": made["id"], "size": len(fake.blobs[made["id"]])}
    deep = b'{"manifests": ' + b"[" * 200_000
    for number, (data, part) in enumerate(
        [
            (b"", r"not JSON \(line 1, column 1\)"),
            (b"[]", "object"),
            (deep, "not JSON: it is nested too deeply"),
            (json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), "schema 1"),
            (json.dumps({"config": config, "layers": [layer] * 1001}).encode(), "array of at most"),
            (json.dumps({"config": {**config, "size": 1 << 40}, "layers": []}).encode(), "limit"),
            (json.dumps({"config": config, "layers": [{**layer, "digest": "sha256:../../x"}]}).encode(), "no digest"),
            (json.dumps({"config": config, "layers": [{**layer, "mediaType": "text/x"}]}).encode(), "no layer"),
        ]
    ):
        fake.manifests["t"] = ("application/vnd.oci.image.manifest.v1+json", data)
        await _refused(fake, tmp_path / str(number), CrishimError, part)


def _halves(data: bytes, go: threading.Event) -> Iterator[bytes]:
    """Yield the first half, and the second one when that is allowed."""
    half = len(data) * 2 // 3
    yield data[:half]
    go.wait(100)
    yield data[half:]


async def test_a_blob_that_is_no_good_is_not_waited_for(fake: FakeRegistry, tmp_path: Path) -> None:
    bad = b"\x1f\x8bno gzip at all" + bytes(600_000)
    layer = fake.image("t", [SMALL], pack=lambda _: bad)["layers"][0]["digest"]
    go = threading.Event()

    def stalled(handler: Handler) -> bool:
        if handler.command != "GET" or not handler.path.endswith(layer):
            return False
        return handler.chunked(_halves(bad, go))

    fake.rules.append(stalled)
    async with Service(str(tmp_path)) as service:
        try:
            with pytest.raises(DataLossError, match="corrupt gzip data"):
                await service.images.pull(f"{fake.host}/a:t")
        finally:
            go.set()
        await service.images.settled()
        # What came of the blob may be right: it is kept for the next attempt, as of any download that was given up.
        assert service.files() == [f"content/parts/{layer.replace(':', '-')}"]
