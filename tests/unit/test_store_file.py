"""The store's file: durability, migrations, versions, damage."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.errors import DataLossError, FailedPreconditionError, InternalError, KernelError
from crishim.store import migrate, reserve
from crishim.store import store as store_module
from crishim.store.database import Database
from crishim.store.store import Store
from tests.support.small import crowd, small_file_system


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a file system of 48 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    with small_file_system(str(directory), request.param, 48):
        yield directory


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
    assert sorted(os.listdir(tmp_path)) == ["state.db", "state.db-shm", "state.db-spare", "state.db-wal"]
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
    monkeypatch.setattr(store_module, "CHECKPOINT_PAGES", 60)
    path = str(tmp_path / "state.db")
    store = Store.open(path)

    async def work() -> None:
        for _ in range(600):
            store.images.put("one", b"[" + b"1," * 2000 + b"1]")
            await asyncio.sleep(0.0005)

    asyncio.run(work())
    assert os.path.getsize(path + "-wal") < reserve.LOG_BYTES + 1_000_000
    store.close()


async def _burst(store: Store, commits: int) -> None:
    """Make commits as large as a container's record, without a pause but for the loop's turn."""
    for number in range(commits):
        store.images.put(f"i{number % 10}", b'["' + b"x" * 8000 + b'"]')
        if number % 20 == 0:
            await asyncio.sleep(0)


def test_the_log_stays_within_its_reserve_whatever_the_size_of_commits(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store.open(path)
    asyncio.run(_burst(store, 6000))
    assert os.path.getsize(path + "-wal") < 3 * reserve.LOG_BYTES
    store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_on_a_full_disk_everything_can_be_removed(small: Path, clean: bool) -> None:
    path = str(small / "state.db")
    store = Store.open(path)

    async def make() -> None:
        for number in range(300):
            store.containers.insert(f"c{number:04}", f"n{number}", b'{"pad":"' + b"x" * 6000 + b'"}')
            await asyncio.sleep(0.0005)

    asyncio.run(make())
    if clean:
        store.close()
        crowd(small)
        store = Store.open(path)
    crowd(small)

    async def empty() -> None:
        for number in range(300):
            store.containers.update(f"c{number:04}", b'{"pad":"' + b"y" * 6000 + b'"}')
            await asyncio.sleep(0.0005)
            store.containers.delete(f"c{number:04}")

    asyncio.run(empty())
    assert store.containers.load() == []
    store.close()
    crowd(small)
    again = Store.open(path)
    again.references.set("late", "t")
    again.references.delete("late")
    assert again.containers.load() == []
    assert again.problems == []
    again.close()


def test_what_is_kept_of_the_log_is_never_taken_for_commits(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store.open(path)
    store.references.set("one", "a")
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["state.db", "state.db-reserve", "state.db-spare"]
    with sqlite3.connect(path) as other:  # a person's shell in between
        other.execute("UPDATE image_references SET target = 'b'")
    other.close()
    again = Store.open(path)
    assert again.references.get("one") == "b"
    again.close()


def test_a_kept_log_beside_a_living_one_goes(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store.open(path)
    store.references.set("one", "a")
    os.link(f"{path}-wal", f"{path}-reserve")  # killed while it closed
    for name in ("state.db", "state.db-wal", "state.db-reserve"):
        shutil.copy(tmp_path / name, tmp_path / f"killed-{name}")
    for name in ("state.db", "state.db-wal", "state.db-reserve"):
        os.rename(tmp_path / f"killed-{name}", tmp_path / f"killed{name.removeprefix('state')}")
    again = Store.open(str(tmp_path / "killed.db"))
    assert again.references.get("one") == "a"
    assert not os.path.exists(tmp_path / "killed.db-reserve")
    again.close()
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
    assert sorted(os.listdir(tmp_path)) == ["state.db", "state.db-reserve", "state.db-spare"]


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
    with open(path, "r+b") as file:
        pages = file.read()
        file.seek(pages.index(b"x" * 2000, len(pages) // 2) // 4096 * 4096)  # one of the containers'
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
