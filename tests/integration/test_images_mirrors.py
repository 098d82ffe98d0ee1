"""Mirrors that are away, silent or liars: what they cost, who is asked next, and what is told."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crishim.errors import CrishimError, DataLossError, NotFoundError, RegistryUnavailableError
from crishim.images.registry.mirrors import FIRST_SECONDS, LONGEST_SECONDS, Mirrors
from tests.fakes.registry import FakeRegistry, Handler
from tests.fakes.registry_images import Service
from tests.support.layout import Entry, directory, tar

BIG = tar([directory("d"), Entry("d/noise", os.urandom(2_000_000))])
SMALL = tar([Entry("small", b"x")])
PAGE = b"<html><body>Sign in to the hotel's network</body></html>"

Rule = Callable[[Handler], bool]


@pytest.fixture
def mirror(fake: FakeRegistry) -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        made.blobs, made.manifests = fake.blobs, fake.manifests
        yield made


def _certs(place: Path, server: str, *mirrors: str) -> tuple[str, ...]:
    hosts = place / "certs" / "registry.example"
    hosts.mkdir(parents=True)
    lines = [f'server = "http://{server}"', *(f'[host."http://{name}"]' for name in mirrors)]
    (hosts / "hosts.toml").write_text("\n".join(lines), encoding="utf-8")
    return (str(place / "certs"),)


def _big(handler: Handler) -> bytes:
    """Return the large blob if it is what is asked for, else nothing."""
    data = handler.registry.blobs.get(handler.path.partition("?")[0].rpartition("/")[2], b"")
    return data if len(data) > 1_000_000 else b""


def _breaks_off(handler: Handler) -> bool:
    data = _big(handler)
    if data:
        handler.break_off(data[: len(data) // 2], len(data))
    return bool(data)


def _short(handler: Handler) -> bool:
    data = _big(handler)
    return bool(data) and handler.chunked([data[: len(data) // 2]])


def _wrong_bytes(handler: Handler) -> bool:
    data = _big(handler)
    return bool(data) and handler.answer(200, data[:-9] + bytes(9))


def _rubbish(handler: Handler) -> bool:
    data = _big(handler)
    return bool(data) and handler.answer(200, bytes(len(data)))


def _wrong_then_breaks(handler: Handler) -> bool:
    data = _big(handler)
    if data:
        handler.break_off(data[:300_000] + bytes(600_000), len(data))
    return bool(data)


def _page(handler: Handler) -> bool:
    return bool(_big(handler)) and handler.answer(200, PAGE, {"Content-Type": "text/html"})


def _pages(handler: Handler) -> bool:
    return handler.answer(200, PAGE, {"Content-Type": "text/html"})


def _fails(handler: Handler) -> bool:
    return bool(_big(handler)) and handler.answer(500)


def _other_range(handler: Handler) -> bool:
    data = _big(handler)
    return bool(data) and handler.answer(206, data, {"Content-Range": f"bytes 7-{len(data) + 6}/*"})


FAULTS: dict[str, Rule] = {
    "breaks": _breaks_off,
    "short": _short,
    "wrong": _wrong_bytes,
    "rubbish": _rubbish,
    "wrong and breaks": _wrong_then_breaks,
    "page for a blob": _page,
    "page for everything": _pages,
    "fails": _fails,
    "another range": _other_range,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_mirror_that_breaks_or_lies_is_left_for_the_next(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = fake.image("t", [BIG, SMALL])
    mirror.rules.append(FAULTS[fault])
    certs = _certs(tmp_path, fake.host, mirror.host)
    async with Service(str(tmp_path / "root"), certs_d=certs) as service:
        assert await service.images.pull("registry.example/a:t") == made["id"]
        before = len(mirror.requests)
        assert before > 0
        await service.images.remove("registry.example/a:t")
        await service.images.settled()
        assert await service.images.pull("registry.example/a:t") == made["id"]
        assert len(mirror.requests) == before, "a mirror that failed is not asked for a while"
    big = made["layers"][0]["digest"]
    # What broke is taken up where it ended, and only the digest of the whole tells that it was wrong.
    assert fake.count(f"GET /v2/a/blobs/{big}") == (3 if fault == "wrong and breaks" else 2)
    if fault == "breaks":
        assert fake.sent[big] < 2 * len(fake.blobs[big]), "what the mirror sent is kept"
    told = capfd.readouterr()
    assert mirror.host in told.out + told.err


async def test_each_mirror_in_turn_may_lie(fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [BIG, SMALL])
    with FakeRegistry() as one, FakeRegistry() as two:
        for liar, rule in ((one, _wrong_bytes), (two, _wrong_then_breaks)):
            liar.blobs, liar.manifests = fake.blobs, fake.manifests
            liar.rules.append(rule)
        certs = _certs(tmp_path, fake.host, one.host, two.host)
        async with Service(str(tmp_path / "root"), certs_d=certs) as service:
            assert await service.images.pull("registry.example/a:t") == made["id"]


async def test_a_registry_that_lies_as_its_mirror_does_ends_the_pull(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    fake.image("t", [BIG])
    for liar in (fake, mirror):
        liar.rules.append(_wrong_bytes)
    certs = _certs(tmp_path, fake.host, mirror.host)
    async with Service(str(tmp_path / "root"), certs_d=certs) as service:
        with pytest.raises(DataLossError, match="digest"):
            await service.images.pull("registry.example/a:t")
        await service.images.settled()
        assert service.files() == []


async def test_an_image_that_is_bad_is_no_fault_of_its_mirror(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    """Its bytes have their digest, and are no archive all the same: the registry has no others."""
    fake.image("t", [b"no archive" * 300_000])
    certs = _certs(tmp_path, fake.host, mirror.host)
    async with Service(str(tmp_path / "root"), certs_d=certs) as service:
        with pytest.raises(DataLossError, match="tar"):
            await service.images.pull("registry.example/a:t")
        assert fake.requests == []
        made = fake.image("good", [SMALL])
        assert await service.images.pull("registry.example/a:good") == made["id"]
        assert fake.requests == []


class Silent:
    """Accepts requests and never answers them, until the test is over."""

    def __init__(self, registry: FakeRegistry) -> None:
        self.over = threading.Event()
        registry.rules.append(self.rule)

    def rule(self, handler: Handler) -> bool:
        self.over.wait(60)
        handler.close_connection = True
        return True


async def test_a_silent_mirror_costs_one_timeout_and_the_next_pulls_nothing(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    made = [fake.image(tag, [tar([Entry(tag)])]) for tag in ("one", "two", "three")]
    silent = Silent(mirror)
    certs = _certs(tmp_path, fake.host, mirror.host)
    try:
        async with Service(str(tmp_path / "root"), certs_d=certs, stall_seconds=1, attempts=5) as service:
            for image, tag in zip(made, ("one", "two", "three"), strict=True):
                assert await service.images.pull(f"registry.example/a:{tag}") == image["id"]
            assert mirror.requests == ["GET /v2/a/manifests/one?ns=registry.example"]
            with pytest.raises(NotFoundError) as caught:
                await service.images.pull("registry.example/a:absent")
            assert len(mirror.requests) == 1
            assert f"{mirror.host}: not asked, it failed before" in str(caught.value)
            assert "nothing came for too long" in str(caught.value)
    finally:
        silent.over.set()


async def test_a_resting_mirror_is_asked_when_the_registry_is_away(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    one, two = (fake.image(tag, [tar([Entry(tag)])]) for tag in ("one", "two"))
    mirror.rules.append(lambda h: h.answer(503))
    certs = _certs(tmp_path, fake.host, mirror.host)
    async with Service(str(tmp_path / "root"), certs_d=certs, attempts=1) as service:
        assert await service.images.pull("registry.example/a:one") == one["id"]
        mirror.rules.clear()
        fake.rules.append(lambda h: h.answer(503))
        assert await service.images.pull("registry.example/a:two") == two["id"]
        mirror.rules.append(lambda h: h.answer(503))
        with pytest.raises(RegistryUnavailableError) as caught:
            await service.images.pull("registry.example/a:three")
        for host in (mirror.host, fake.host):
            assert f"{host}: HTTP 503" in str(caught.value)


async def test_a_blob_that_no_endpoint_gives_whole_names_them_all(
    fake: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    fake.image("t", [BIG])

    def breaks(handler: Handler) -> bool:
        data = _big(handler)
        if data:
            handler.break_off(b"", len(data))
        return bool(data)

    fake.rules.append(breaks)
    mirror.rules.append(_breaks_off)
    certs = _certs(tmp_path, fake.host, mirror.host)
    async with Service(str(tmp_path / "root"), certs_d=certs, attempts=2) as service:
        with pytest.raises(CrishimError) as caught:
            await service.images.pull("registry.example/a:t")
    for host in (mirror.host, fake.host):
        assert host in str(caught.value)
    assert "IncompleteRead" not in str(caught.value)


def test_how_long_a_mirror_rests() -> None:
    now = 1000.0
    mirrors = Mirrors(lambda: now)
    assert mirrors.resting("m") == ""
    assert mirrors.failed("m", "away") == FIRST_SECONDS
    assert mirrors.failed("m", "away too") == FIRST_SECONDS, "what was under way with it is no second failure"
    assert (mirrors.resting("m"), mirrors.resting("n")) == ("away", "")
    now += FIRST_SECONDS
    assert mirrors.resting("m") == ""
    assert mirrors.failed("m", "still") == 2 * FIRST_SECONDS
    for _ in range(9):
        now += LONGEST_SECONDS
        last = mirrors.failed("m", "still")
    assert last == LONGEST_SECONDS
    mirrors.worked("m", now)
    assert mirrors.resting("m") != "", "what was asked before the failure and answered after it proves nothing"
    now += 1
    mirrors.worked("m", now)
    assert mirrors.resting("m") == ""
    assert mirrors.failed("m", "again") == FIRST_SECONDS
