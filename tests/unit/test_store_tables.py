"""What the store keeps, refuses and quarantines."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.errors import AlreadyExistsError, InternalError, NotFoundError
from crishim.store.objects import Row
from crishim.store.store import Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def test_objects_survive(store: Store, path: str) -> None:
    store.sandboxes.insert("s1", "name one", b'{"a":1}')
    store.containers.insert("c1", "web", b"{}", parent="s1")
    store.containers.update("c1", b'{"state":2}')
    store.close()
    again = Store.open(path)
    assert again.sandboxes.load() == [Row("s1", "name one", "", b'{"a":1}')]
    assert again.containers.load() == [Row("c1", "web", "s1", b'{"state":2}')]
    assert again.containers.delete("c1")
    assert not again.containers.delete("c1")
    assert again.containers.load() == []
    assert again.problems == []
    again.close()


def test_a_name_has_one_owner(store: Store) -> None:
    store.sandboxes.insert("s1", "pod", b"{}")
    with pytest.raises(AlreadyExistsError, match="the name 'pod' is taken by s1"):
        store.sandboxes.insert("s2", "pod", b"{}")
    with pytest.raises(AlreadyExistsError, match="the id s1 is taken"):
        store.sandboxes.insert("s1", "other", b"{}")
    assert store.sandboxes.owner("pod") == "s1"
    assert store.sandboxes.owner("nobody") is None
    store.sandboxes.delete("s1")
    store.sandboxes.insert("s2", "pod", b"{}")
    store.containers.insert("c", "pod", b"{}")


def test_update_of_what_is_gone(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no record of x in containers"):
        store.containers.update("x", b"{}")


def test_bytes_that_are_no_utf8_come_back_as_they_were(store: Store) -> None:
    store.containers.insert("c", "n", b'{"env":"\xff"}')
    assert store.containers.load()[0].document == b'{"env":"\xff"}'


@pytest.mark.parametrize("document", [b"", b'{"a":', b"\x00\x01", b"[" * 100_000])
def test_a_bad_record_is_quarantined_and_the_others_load(store: Store, document: bytes) -> None:
    store.containers.insert("good", "g", b"{}")
    store.containers.insert("bad", "b", document, parent="s")
    store.images.put("sha256:bad", document)
    assert [row.id for row in store.containers.load()] == ["good"]
    assert store.images.load() == {}
    assert len(store.problems) == 2
    assert store.problems[0].startswith("containers bad: the document is not JSON")
    kind, row, _ = store.quarantine.load()[0]
    assert (kind, row) == ("containers", Row("bad", "b", "s", document))
    store.containers.insert("new", "b", b"{}")
    assert [row.id for row in store.containers.load()] == ["good", "new"]


def test_a_record_of_another_type_is_quarantined(store: Store, path: str) -> None:
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO containers VALUES ('x', 'x', '', 7)")
    other.close()
    assert store.containers.load() == []
    assert "is int, not bytes" in store.problems[0]


def test_quarantine_by_the_reader(store: Store) -> None:
    store.sandboxes.insert("s", "n", b'{"unknown":1}')
    assert store.sandboxes.quarantine("s", "SandboxRecord.unknown: unknown key")
    assert not store.sandboxes.quarantine("s", "again")
    assert store.sandboxes.load() == []
    assert [reason for _, _, reason in store.quarantine.load()] == ["SandboxRecord.unknown: unknown key"]


def test_documents_and_names(store: Store) -> None:
    store.images.put("sha256:1", b"{}")
    store.images.put("sha256:1", b'{"n":2}')
    store.references.set("docker.io/library/a:1", "sha256:1")
    store.references.set("docker.io/library/a:1", "sha256:2")
    store.holds.set("c1", "sha256:1")
    assert store.images.load() == {"sha256:1": b'{"n":2}'}
    assert store.images.get("sha256:9") is None
    assert store.references.load() == {"docker.io/library/a:1": "sha256:2"}
    assert store.holds.get("c1") == "sha256:1"
    assert store.holds.get("c2") is None
    assert store.holds.delete("c1")
    assert not store.holds.delete("c1")
    assert store.images.delete("sha256:1")


def test_leases(store: Store) -> None:
    store.leases.take("10.0.0.0/24", "10.0.0.2", "pod1")
    store.leases.take("10.0.0.0/24", "10.0.0.2", "pod1")
    store.leases.take("fd00::/64", "fd00::2", "pod1")
    with pytest.raises(AlreadyExistsError, match=r"10\.0\.0\.2 of 10\.0\.0\.0/24 is leased to pod1"):
        store.leases.take("10.0.0.0/24", "10.0.0.2", "pod2")
    assert store.leases.load("10.0.0.0/24") == {"10.0.0.2": "pod1"}
    assert store.leases.pools() == ["10.0.0.0/24", "fd00::/64"]
    assert store.leases.release("pod1") == ["10.0.0.2", "fd00::2"]
    assert store.leases.release("pod1") == []
    assert store.leases.load("10.0.0.0/24") == {}
    assert store.leases.pools() == []


def test_values(store: Store) -> None:
    assert store.values.get("boot") is None
    store.values.set("boot", {"id": "x", "n": [1, 2]})
    assert store.values.get("boot") == {"id": "x", "n": [1, 2]}
    store.values.set("boot", None)
    assert store.values.get("boot", 7) == 7


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    def twice() -> None:
        with store.transaction():
            store.images.put("a", b"{}")
            store.sandboxes.insert("1", "n", b"{}")
            with store.transaction():
                store.sandboxes.insert("2", "n", b"{}")

    with pytest.raises(AlreadyExistsError):
        twice()
    assert store.images.load() == {}
    with store.transaction():
        store.images.put("a", b"{}")
        with store.transaction():
            store.images.put("b", b"{}")
    assert set(store.images.load()) == {"a", "b"}


def test_errors_of_sqlite_are_ours(store: Store) -> None:
    store.close()
    with pytest.raises(InternalError, match="closed database"):
        store.images.put("a", b"{}")
