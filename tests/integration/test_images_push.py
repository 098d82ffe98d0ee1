"""Pushes into a registry that breaks, refuses and forgets; what a real registry does is in test_images_roundtrip."""

import asyncio
import base64
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from crishim.errors import (
    CrishimError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.model import Credentials, Pushed
from crishim.images.progress import Item, State
from tests.fakes.push_registry import PushRegistry
from tests.fakes.registry import CONFIG, INDEX, LAYER, FakeRegistry, Handler
from tests.fakes.registry_images import Service
from tests.support import layout
from tests.support.layout import Entry, tar

BIG = tar([Entry("big", os.urandom(200_000))])
SMALL = tar([Entry("small", b"x")])


@pytest.fixture
def goal(fake: FakeRegistry) -> Iterator[PushRegistry]:
    """Return the registry that is pushed to; `fake` is the one that images come from."""
    with PushRegistry() as made:
        yield made


class Seen:
    """Keeps the last item of each blob."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}

    async def __call__(self, items: Sequence[Item]) -> None:
        self.items |= {item.id: item for item in items}

    def states(self) -> list[State]:
        return sorted((item.state for item in self.items.values()), key=lambda state: state.value)


async def push(service: Service, source: str, destination: str, login: Credentials | None = None) -> Pushed:
    await service.images.pull(source)
    return await service.images.push(source, destination, login, Seen())


async def test_whole_blobs_and_the_same_manifest(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG, SMALL])
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        seen = Seen()
        pushed = await service.images.push(f"{fake.host}/a:t", f"{goal.host}/b/c:v", None, seen)
        assert (pushed.name, pushed.digest) == (f"{goal.host}/b/c:v", made["digest"])
        assert goal.manifests["v"] == fake.manifests["t"]
        assert {digest: goal.blobs[digest] for digest in fake.blobs} == fake.blobs
        assert [method for method, _, _ in goal.pieces] == ["PUT"] * 3
        assert seen.states() == [State.DONE] * 4
        assert service.observed.pushes == [("ok", sum(len(data) for data in fake.blobs.values()))]
        seen = Seen()
        await service.images.push(f"{fake.host}/a:t", f"{goal.host}/b/c:w", None, seen)
        assert seen.states() == [State.DONE, *[State.PRESENT] * 3]
        assert len(goal.pieces) == 3
        image = service.images.find(f"{goal.host}/b/c@{made['digest']}")
        assert image is not None
        assert image.id == made["id"]


@pytest.mark.parametrize("minimum", [0, 70_000])
async def test_pieces(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path, minimum: int) -> None:
    fake.image("t", [BIG], pack=bytes)
    goal.minimum = minimum
    async with Service(str(tmp_path), chunk_bytes=50_000) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
    patches = [(first, size) for method, first, size in goal.pieces if method == "PATCH"]
    size = max(minimum, 50_000)
    assert patches == [(first, min(size, len(BIG) - first)) for first in range(0, len(BIG), size)]
    assert goal.manifests["t"] == fake.manifests["t"]


@pytest.mark.parametrize("chunk", [50_000, 1 << 30])
async def test_what_broke_goes_on_where_it_broke(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path, chunk: int
) -> None:
    fake.image("t", [BIG], pack=bytes)
    broken: list[int] = []

    def kept(number: int) -> int | None:
        size = goal.pieces[number - 1][2]
        if size > 20_000 and len(broken) < 3:
            broken.append(number)
            return 15_000
        return None

    goal.kept = kept
    async with Service(str(tmp_path), chunk_bytes=chunk) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
    assert len(broken) == 3
    assert [first for _, first, size in goal.pieces if size > 20_000][:4] == [0, 15_000, 30_000, 45_000]
    assert goal.manifests["t"] == fake.manifests["t"]
    assert goal.count("GET /v2/a/blobs/uploads/") == 3


async def test_a_registry_that_lost_some_of_an_upload(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    fake.image("t", [BIG], pack=bytes)
    cut: list[str] = []

    def forget(handler: Handler) -> bool:
        """Before the third piece, drop the end of what was received, so that the piece is out of step."""
        if handler.command == "PATCH" and not cut:
            for name, held in goal.uploads.items():
                if len(held) == 100_000:
                    del held[60_000:]
                    cut.append(name)
        return False

    goal.rules.insert(0, forget)
    async with Service(str(tmp_path), chunk_bytes=50_000) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
    assert cut
    assert (60_000, 50_000) in [(first, size) for _, first, size in goal.pieces]
    assert goal.manifests["t"] == fake.manifests["t"]


async def test_an_upload_that_was_forgotten_begins_again(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path
) -> None:
    fake.image("t", [BIG], pack=bytes)
    dropped: list[bool] = []

    def forget(handler: Handler) -> bool:
        if handler.command == "PATCH" and not dropped and any(len(held) == 100_000 for held in goal.uploads.values()):
            dropped.append(True)
            goal.uploads.clear()
        return False

    goal.rules.insert(0, forget)
    async with Service(str(tmp_path), chunk_bytes=50_000) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
    assert dropped
    assert [first for method, first, size in goal.pieces if method == "PATCH"].count(0) == 2
    assert goal.manifests["t"] == fake.manifests["t"]


@pytest.mark.parametrize("status", [429, 503])
async def test_every_third_request_is_put_off(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path, status: int
) -> None:
    fake.image("t", [BIG, SMALL], pack=bytes)
    asked: list[str] = []

    def busy(handler: Handler) -> bool:
        asked.append(handler.command)
        if len(asked) % 3:
            return False
        handler.close_connection = True
        return handler.answer(status, headers={"Retry-After": "0"})

    goal.rules.insert(0, busy)
    async with Service(str(tmp_path), chunk_bytes=50_000, parallel_layers=1) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
    assert goal.manifests["t"] == fake.manifests["t"]
    assert {digest: goal.blobs[digest] for digest in fake.blobs} == fake.blobs


def answering(status: int, method: str, part: str, body: bytes = b"") -> "Rule":
    return Rule(status, method, part, body)


class Rule:
    """Answers some requests with a status."""

    def __init__(self, status: int, method: str, part: str, body: bytes) -> None:
        self.status, self.method, self.part, self.body = status, method, part, body

    def __call__(self, handler: Handler) -> bool:
        if handler.command != self.method or self.part not in handler.path:
            return False
        handler.close_connection = True
        return handler.answer(self.status, self.body)


@pytest.mark.parametrize(
    ("rule", "kind", "text"),
    [
        (answering(401, "HEAD", "/blobs/"), UnauthenticatedError, "access denied"),
        (
            answering(403, "POST", "", b'{"errors":[{"code":"DENIED"}]}'),
            PermissionDeniedError,
            "DENIED",
        ),
        (answering(404, "POST", "", b'{"errors":[{"code":"NAME_UNKNOWN"}]}'), NotFoundError, "NAME_UNKNOWN"),
        (answering(405, "POST", "", b'{"errors":[{"code":"UNSUPPORTED"}]}'), FailedPreconditionError, "UNSUPPORTED"),
        (answering(413, "PUT", "/blobs/"), FailedPreconditionError, "HTTP 413"),
        (answering(500, "PUT", "/blobs/"), UnavailableError, "HTTP 500"),
        (answering(202, "POST", ""), FailedPreconditionError, "upload location"),
        (answering(400, "PUT", "/manifests/", b'{"errors":[{"code":"MANIFEST_INVALID"}]}'), CrishimError, "MANIFEST"),
        (answering(403, "PUT", "/manifests/"), PermissionDeniedError, "manifest t"),
    ],
)
async def test_refusals_are_told(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path, rule: Rule, kind: type[CrishimError], text: str
) -> None:
    fake.image("t", [SMALL])
    goal.rules.insert(0, rule)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(kind, match=goal.host) as caught:
            await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")
        assert text in str(caught.value)
        assert goal.manifests == {}
        image = service.images.find(f"{fake.host}/a:t")
        assert image is not None
        assert [name for name in image.repo_digests if goal.host in name] == []


async def test_a_manifest_that_is_stored_as_something_else(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path
) -> None:
    fake.image("t", [SMALL])

    def other(handler: Handler) -> bool:
        if handler.command != "PUT" or "/manifests/" not in handler.path:
            return False
        handler.rfile.read(int(handler.headers["Content-Length"]))
        return handler.answer(201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64})

    goal.rules.insert(0, other)
    async with Service(str(tmp_path)) as service:
        with pytest.raises(DataLossError, match="it has stored sha256:0000"):
            await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t")


async def test_one_token_to_read_and_write(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    fake.image("t", [BIG, SMALL])
    asked: list[list[str]] = []

    def token(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            asked.append(parse_qs(urlsplit(handler.path).query)["scope"])
            assert handler.headers["Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
            return handler.answer(200, b'{"token": "t"}')
        if handler.headers.get("Authorization") == "Bearer t":
            return False
        handler.close_connection = True
        scope = "repository:x/y:pull" + (",push" if handler.command != "HEAD" else "")
        return handler.answer(
            401, headers={"WWW-Authenticate": f'Bearer realm="http://{goal.host}/token",service="s",scope="{scope}"'}
        )

    goal.rules.insert(0, token)
    async with Service(str(tmp_path)) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/x/y:1", Credentials(username="u", password="p"))
    assert goal.manifests["1"] == fake.manifests["t"]
    assert asked == [["repository:x/y:pull", "repository:x/y:pull,push"]]


async def test_an_upload_location_elsewhere_gets_no_credentials(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path
) -> None:
    fake.image("t", [SMALL])
    with PushRegistry() as storage:
        storage.uploads, goal.location = goal.uploads, f"http://{storage.host}"
        leaked: list[str] = []

        def basic(handler: Handler) -> bool:
            if handler.headers.get("Authorization"):
                return False
            handler.close_connection = True
            return handler.answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

        def watch(handler: Handler) -> bool:
            leaked.append(handler.headers.get("Authorization", ""))
            return False

        goal.rules.insert(0, basic)
        storage.rules.insert(0, watch)
        async with Service(str(tmp_path)) as service:
            await push(service, f"{fake.host}/a:t", f"{goal.host}/a:t", Credentials(auth="dTpw"))
        assert leaked == ["", ""]
        assert set(storage.blobs) == set(fake.blobs)


async def test_pushes_go_where_hosts_toml_lets_them(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    certs = tmp_path / "certs.d" / "r.example"
    certs.mkdir(parents=True)
    mirror = f'[host."http://{fake.host}"]\ncapabilities = ["pull", "resolve"]\n'
    (certs / "hosts.toml").write_text(f'server = "http://{goal.host}"\n{mirror}')
    async with Service(str(tmp_path / "root"), certs_d=(str(tmp_path / "certs.d"),)) as service:
        await service.images.pull("r.example/a:t")
        await service.images.push("r.example/a:t", "", None, Seen())
        assert goal.manifests["t"] == fake.manifests["t"]
        assert fake.count("POST ") == 0
        (certs / "hosts.toml").write_text(f'server = "http://{fake.host}"\ncapabilities = ["pull", "resolve"]\n')
        with pytest.raises(FailedPreconditionError, match="names no host with the capability push"):
            await service.images.push("r.example/a:t", "", None, Seen())


async def test_foreign_layers_stay_where_they_are(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    foreign = LAYER.replace(".layer.v1", ".layer.nondistributable.v1")
    own = fake.image("own", [SMALL])
    made = fake.image("t", [SMALL])
    layer = {**own["layers"][0], "mediaType": foreign, "urls": [f"http://{fake.host}/v2/a/blobs/x"]}
    config = {"mediaType": CONFIG, "digest": made["id"], "size": len(fake.blobs[made["id"]])}
    fake.document({"config": config, "layers": [layer]}, "f")
    async with Service(str(tmp_path)) as service:
        seen = Seen()
        await service.images.pull(f"{fake.host}/a:f")
        await service.images.push(f"{fake.host}/a:f", f"{goal.host}/a:f", None, seen)
    assert seen.items[layer["digest"]].state is State.SKIPPED
    assert set(goal.blobs) == {made["id"]}
    assert goal.manifests["f"] == fake.manifests["f"]


async def test_of_an_index_this_machines_manifest_goes(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    made = fake.image("one", [SMALL])
    entry = {key: made[key] for key in ("mediaType", "digest", "size")}
    here = {"architecture": layout.architecture(), "os": "linux"}
    odd = {**entry, "digest": "sha256:" + "0" * 64, "platform": {"architecture": "mips", "os": "linux"}}
    fake.document({"manifests": [odd, {**entry, "platform": here}]}, "all", INDEX)
    async with Service(str(tmp_path)) as service:
        pushed = await push(service, f"{fake.host}/a:all", f"{goal.host}/a:all")
    assert pushed.digest == made["digest"]
    assert goal.manifests["all"] == fake.manifests["one"]


async def test_names_to_push_to(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    async with Service(str(tmp_path)) as service:
        await push(service, f"{fake.host}/a:t", f"{goal.host}/a@{made['digest']}")
        assert set(goal.manifests) == {made["digest"]}
        for source, destination, kind, text in (
            (
                f"{fake.host}/a:t",
                f"{goal.host}/a@sha256:{'0' * 64}",
                InvalidArgumentError,
                "destination: has the digest",
            ),
            (f"{fake.host}/a:t", "no spaces", InvalidArgumentError, "destination: 'no spaces'"),
            (made["id"], "", InvalidArgumentError, "destination: image sha256:"),
            ("b/c:d", "", NotFoundError, "no image b/c:d is here"),
        ):
            with pytest.raises(kind, match=text):
                await service.images.push(source, destination, None, Seen())


async def test_a_blob_that_is_lost_here(fake: FakeRegistry, goal: PushRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        os.unlink(f"{service.paths.content}/sha256/{made['layers'][0]['digest'][7:]}")
        with pytest.raises(DataLossError, match="pull the image again"):
            await service.images.push(f"{fake.host}/a:t", f"{goal.host}/a:t", None, Seen())
    assert goal.manifests == {}


async def test_a_cancelled_push_ends_and_its_blobs_are_free(
    fake: FakeRegistry, goal: PushRegistry, tmp_path: Path
) -> None:
    fake.image("t", [SMALL])
    reached, ended = threading.Event(), threading.Event()

    def stuck(handler: Handler) -> bool:
        if handler.command != "PUT":
            return False
        reached.set()
        ended.wait(60)
        handler.close_connection = True
        return True

    goal.rules.insert(0, stuck)
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        work = asyncio.create_task(service.images.push(f"{fake.host}/a:t", f"{goal.host}/a:t", None, Seen()))
        while not reached.is_set():
            await asyncio.sleep(0.01)
        await service.images.remove(f"{fake.host}/a:t")
        assert service.files() != []
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        ended.set()
        await service.images.settled()
        assert service.files() == []
        assert service.observed.pushes == [("cancelled", service.observed.pushes[0][1])]
    assert goal.manifests == {}


async def test_progress_of_a_pull(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG, SMALL])
    async with Service(str(tmp_path)) as service:
        seen = Seen()
        pulled = await service.images.pull_watched(f"{fake.host}/a:t", None, seen)
        assert (pulled.id, pulled.digest, pulled.cached) == (made["id"], made["digest"], False)
        assert {key: (item.state, item.current, item.total) for key, item in seen.items.items()} == {
            layer["digest"]: (State.DONE, layer["size"], layer["size"]) for layer in made["layers"]
        }
        fake.image("more", [BIG, tar([Entry("other", b"y")])])
        seen = Seen()
        await service.images.pull_watched(f"{fake.host}/a:more", None, seen)
        assert seen.states() == [State.DONE, State.PRESENT]
        again = await service.images.pull_watched(f"{fake.host}/a:t", None, seen)
        assert again.cached
        assert sum(size for _, size in service.observed.pulls) == sum(len(data) for data in fake.blobs.values())
