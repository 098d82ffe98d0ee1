"""One SQLite connection with our settings, our errors and one way to make a change.

Write-ahead log, `synchronous=NORMAL`: a commit survives the death of the daemon at once, and a crash of the machine
from the next checkpoint on (sqlite.org/wal.html, section "Performance Considerations"). Automatic checkpoints are
off, since they would put an fsync into some caller's commit; `store` runs them in a thread, and `flush` makes all
commits so far durable without one.

Invariant: every change of one `transaction()` is in the file, or none.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from crishim.errors import CrishimError, DataLossError, InternalError, ResourceExhaustedError
from crishim.store.reserve import LOG_BYTES

PAGE = 4096
ROOM = "store.room"
ROOM_PAGES = 1024
"""Free pages that a database has after `make_room`: more than commits use up between two checkpoints."""
BUSY_SECONDS = 5.0
"""How long a commit waits for another process that has the file open, like a person's sqlite3 shell."""

CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


class Database:
    """A connection for the thread that made it (the event loop's).

    Args:
        path: the database's file; made if it is missing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.on_commit: Callable[[], None] = _nothing
        self.pages = 0
        """Pages that were written since somebody set this to 0, as estimated from the values."""
        self._depth = 0
        self._connection = connect(path)

    def close(self) -> None:
        """Close; what is committed stays."""
        self._connection.close()

    def configure(self) -> None:
        """Switch to the write-ahead log; only after the schema's version is known to be ours."""
        with errors(self.path):
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
            self._connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""
        with errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement, in a transaction of its own where none is open; return how many rows it changed."""
        with errors(self.path):
            try:
                count = self._connection.execute(sql, values).rowcount
            except sqlite3.OperationalError as error:
                if self._depth or not _is_full(error):
                    raise
                self._copy_back()
                count = self._connection.execute(sql, values).rowcount
        # the row's own page, those of its index and of the list of free ones, and the overflow of a long value
        self.pages += 3 + sum(len(value) for value in values if isinstance(value, bytes)) // PAGE
        if not self._depth:
            self.on_commit()
        return count

    def script(self, sql: str) -> None:
        """Run a script that brings its own BEGIN and COMMIT; nothing of it stays if it fails."""
        with errors(self.path):
            try:
                self._connection.executescript(sql)
            except sqlite3.Error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _copy_back(self) -> None:
        """Begin the write-ahead log anew, where it has come to the end of its reserve on a full disk; waits."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes within the block at once or not at all; an inner block is part of the outer one."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        with errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            with errors(self.path):
                self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, ResourceExhaustedError):
                self._copy_back()  # so that it works when it is tried again
            raise
        finally:
            self._depth = 0
        self.on_commit()


def flush(path: str) -> None:
    """Make every commit so far survive a crash of the machine; blocks, any thread.

    A commit is durable once its frames in the write-ahead log are on the disk: recovery replays them
    (sqlite.org/walformat.html). So one fsync of the log does what a checkpoint would, without copying pages. Opening
    and closing the log beside SQLite is safe: it keeps its POSIX locks on the database and the index, not here.
    """
    for name in (f"{path}-wal", os.path.dirname(path) or "."):
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # no log: all is in the database, where the checkpoint that removed the log has synced it
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise InternalError(f"fsync {name}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def checkpoint(path: str) -> None:
    """Copy the write-ahead log back into the database, with fsync; blocks, any thread, writers go on meanwhile.

    SQLite begins the log anew only once all of it was copied. Writers that never pause keep it from that; one that has
    grown beyond its bound is copied while they wait.
    """
    connection = connect(path)
    try:
        with errors(path):
            _busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if copied < frames and frames * PAGE > LOG_BYTES:
                connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    finally:
        connection.close()


def make_room(path: str) -> bool:
    """Give the database free pages to grow into, if it has few; tell whether it had. Blocks, any thread.

    They come from a value that is written and deleted, and are on the disk after the next checkpoint. Where there is no
    space for both log and file, they would only keep that checkpoint from its end.
    """
    connection = connect(path)
    try:
        with errors(path):
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            if free >= ROOM_PAGES * 3 // 4:
                return False
            size = (ROOM_PAGES - free) * PAGE
            disk = os.statvfs(path)
            if disk.f_bavail * disk.f_frsize < 4 * size:
                return False
            connection.execute("INSERT OR REPLACE INTO settings (key, document) VALUES (?, zeroblob(?))", (ROOM, size))
            connection.execute("DELETE FROM settings WHERE key = ?", (ROOM,))
            return True
    finally:
        connection.close()


def _nothing() -> None:
    return


def connect(path: str) -> sqlite3.Connection:
    """Open the file without touching it; statements commit by themselves."""
    with errors(path):
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


@contextmanager
def errors(path: str) -> Iterator[None]:
    """Turn SQLite's errors into ours; uniqueness (IntegrityError) is left to the caller, who knows the owner."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise _translated(path, error) from error


def _is_full(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code in _FULL or code & 0xFF == sqlite3.SQLITE_FULL


def _translated(path: str, error: sqlite3.Error) -> CrishimError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in CORRUPT:
        return DataLossError(f"{path}: {error}; it is moved aside when the daemon starts anew")
    if _is_full(error):
        return ResourceExhaustedError(f"{path}: no space left to write the state: {error}")
    return InternalError(f"{path}: {error}")
