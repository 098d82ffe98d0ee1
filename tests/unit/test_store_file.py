"""The store's file: durability, migrations, versions, damage."""

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from crishim.errors import DataLossError, FailedPreconditionError, InternalError, KernelError
from crishim.store import migrate
from crishim.store import store as store_module
from crishim.store.database import Database
from crishim.store.store import Store


def filled(path: str, count: int) -> None:
    store = Store.open(path)
    for number in range(count):
        store.containers.insert(f"c{number:04}", f"n{number}", b'{"pad":"' + b"x" * 3000 + b'"}')
        store.references.set(f"r{number}", "t")
    store.close()


def test_settings_of_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store.open(path)
    store.images.put("a", b"{}")
    for name in os.listdir(tmp_path):
        assert os.stat(tmp_path / name).st_mode & 0o777 == 0o600, name
    assert len(os.listdir(tmp_path)) == 3
    store.close()
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert other.execute("PRAGMA user_version").fetchone() == (len(migrate.migrations()),)
    other.close()


def test_what_is_synced_is_in_the_copied_files(tmp_path: Path) -> None:
    """A copy of the files, taken while the store is open, is what a crash leaves."""
    path = str(tmp_path / "state.db")
    store = Store.open(path)

    async def work() -> None:
        for number in range(30):
            store.images.put(f"i{number}", b"{}")
            await asyncio.gather(store.sync(), store.sync(), store.sync())

    asyncio.run(work())
    asyncio.run(store.sync())
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("state.db", "state.db-wal"):
        shutil.copy(tmp_path / name, crashed / name)
    again = Store.open(str(crashed / "state.db"))
    assert len(again.images.load()) == 30
    again.close()
    store.close()
    assert not os.path.exists(path + "-wal")


def test_a_sync_whose_caller_is_gone_serves_the_others(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "state.db"))

    async def work() -> None:
        first = asyncio.create_task(store.sync())
        second = asyncio.create_task(store.sync())
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled()

    asyncio.run(work())
    store.close()


def test_the_log_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_COMMITS", 20)
    path = str(tmp_path / "state.db")
    store = Store.open(path)

    async def work() -> None:
        for _ in range(600):
            store.images.put("one", b"[" + b"1," * 2000 + b"1]")
            await asyncio.sleep(0.0005)

    asyncio.run(work())
    assert os.path.getsize(path + "-wal") < 2_000_000
    store.close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    filled(path, 3)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    before = Path(path).read_bytes()
    with pytest.raises(FailedPreconditionError, match=r"schema version 99 and this crishim knows \d+"):
        Store.open(path)
    assert Path(path).read_bytes() == before
    assert os.listdir(tmp_path) == ["state.db"]


def test_a_failing_migration_leaves_the_version_before(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "0001_a.sql").write_text("CREATE TABLE a (x);")
    (folder / "0002_b.sql").write_text("CREATE TABLE b (x); CREATE TABLE a (x);")
    database = Database(str(tmp_path / "d.db"))
    with pytest.raises(InternalError, match="table a already exists"):
        migrate.migrate(database, str(folder))
    assert migrate.version(database) == 1
    (folder / "0002_b.sql").write_text("CREATE TABLE b (x);")
    migrate.migrate(database, str(folder))
    assert migrate.version(database) == 2
    assert len(database.rows("SELECT name FROM sqlite_master WHERE name IN ('a', 'b')")) == 2
    database.close()


def test_a_gap_in_the_migrations_is_found(tmp_path: Path) -> None:
    (tmp_path / "0002_b.sql").write_text("")
    with pytest.raises(InternalError, match="not numbered 1 to 1"):
        migrate.migrations(str(tmp_path))


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    Path(path).write_bytes(b"this is not a database" * 500)
    store = Store.open(path)
    assert store.sandboxes.load() == []
    assert "was corrupt (file is not a database): moved to" in store.problems[0]
    store.close()
    (moved,) = [name for name in os.listdir(tmp_path) if ".corrupt-" in name]
    assert (tmp_path / moved).read_bytes().startswith(b"this is not")


def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    filled(path, 200)
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 8192)
    store = Store.open(path)
    assert "was corrupt" in store.problems[0]
    assert 0 < len(store.containers.load()) < 200
    assert len(store.references.load()) == 200
    store.close()
    again = Store.open(path)
    assert again.problems == []
    again.close()


def test_a_truncated_file_is_moved_aside(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    filled(path, 100)
    os.truncate(path, os.path.getsize(path) // 3)
    store = Store.open(path)
    assert "was corrupt" in store.problems[0]
    store.sandboxes.insert("s", "n", b"{}")
    store.close()


def test_an_emptied_file_is_reported(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    filled(path, 1)
    os.truncate(path, 0)
    store = Store.open(path)
    assert store.problems == [f"{path} was empty: begun anew"]
    store.close()


def test_two_damaged_files_in_one_second_keep_both(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    for _ in range(3):
        Path(path).write_bytes(b"x" * 5000)
        Store.open(path).close()
    assert len([name for name in os.listdir(tmp_path) if ".corrupt-" in name]) == 3


def test_damage_while_serving_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    filled(path, 200)
    database = Database(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(path) - 4096))
    with pytest.raises(DataLossError, match="moved aside when the daemon starts anew"):
        database.rows("SELECT * FROM containers")
    database.close()


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"open .*/none/state.db: No such file"):
        Store.open(str(tmp_path / "none" / "state.db"))
