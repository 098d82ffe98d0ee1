"""The instance's state in one SQLite file: what must survive a restart of the daemon, and most of it a reboot.

Used from the event loop's thread, synchronously: a commit costs some tens of microseconds and no fsync. Where a
change must survive a crash of the machine (images, names, layers), the caller awaits `sync()`, whose fsync runs in
a thread and is shared by all who wait. Out of scope: what the documents mean.

Invariants: there is one writer; a file of a newer version is refused and left as it is; a corrupt file is moved
aside, what can be read of it is kept, and the daemon serves on.
"""

import asyncio
import os
from contextlib import AbstractContextManager
from typing import Self

from crishim.errors import KernelError
from crishim.store import migrate, salvage
from crishim.store.database import Database, checkpoint, flush
from crishim.store.objects import Objects, Quarantine
from crishim.store.tables import Documents, Leases, Names, Values

CHECKPOINT_COMMITS = 1000
"""Commits after which the write-ahead log is copied back, so that it does not grow without bound (~4 MB)."""


class Store:
    """All tables of one instance; made by `Store.open`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._commits = 0
        self._waiting: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        self._quarantine = Quarantine(database)
        self.sandboxes = Objects(database, self._quarantine, "sandboxes")
        self.containers = Objects(database, self._quarantine, "containers")
        self.images = Documents(database, self._quarantine, "images")
        self.layers = Documents(database, self._quarantine, "layers")
        self.references = Names(database, "image_references")
        self.holds = Names(database, "holds")
        self.leases = Leases(database)
        self.attachments = Documents(database, self._quarantine, "attachments")
        self.values = Values(database, self._quarantine)
        database.on_commit = self._count

    @classmethod
    def open(cls, path: str) -> Self:
        """Open or make the database; its directory must exist.

        Raises:
            FailedPreconditionError: the file is of a newer version.
            InternalError, KernelError, ResourceExhaustedError: the file cannot be opened or written.
        """
        emptied = os.path.exists(path) and os.path.getsize(path) == 0
        database, broken, found = _sound(path)
        try:
            migrate.refuse_newer(database)
            database.configure()
            migrate.migrate(database)
            saved = salvage.salvage(broken, database) if broken else 0
        except BaseException:
            database.close()
            raise
        store = cls(database)
        if broken:
            store.problems.append(f"{path} was corrupt ({found}): moved to {broken}, {saved} rows of it were kept")
        elif emptied:
            store.problems.append(f"{path} was empty: begun anew")
        return store

    @property
    def problems(self) -> list[str]:
        """What was found wrong with the stored state since it was opened: sentences for the log."""
        return self._quarantine.reports

    @property
    def quarantine(self) -> Quarantine:
        """The rows that could not be read."""
        return self._quarantine

    def transaction(self) -> AbstractContextManager[None]:
        """Make all changes of a block at once or not at all; no await belongs into the block."""
        return self._database.transaction()

    async def sync(self) -> None:
        """Return when all commits made before the call survive a crash of the machine."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(self._flush(self._running), name="store flush")
        await asyncio.shield(self._waiting)

    def close(self) -> None:
        """Copy everything into the one file and close it."""
        self._database.close()

    async def _flush(self, before: asyncio.Task[None] | None) -> None:
        """Flush once the one before is through; who comes until then shares this one."""
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._waiting = self._waiting, None
        await asyncio.to_thread(flush, self._database.path)

    def _count(self) -> None:
        self._commits += 1
        if self._commits < CHECKPOINT_COMMITS or (self._checkpoint is not None and not self._checkpoint.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no loop runs (a tool, a test): closing the file checkpoints it
        self._commits = 0
        self._checkpoint = loop.create_task(asyncio.to_thread(checkpoint, self._database.path), name="store checkpoint")


def _sound(path: str) -> tuple[Database, str, str]:
    """Open a database that works; return it, where a corrupt one was moved to, and what was wrong with that."""
    database = _database(path)
    try:
        found = salvage.corruption(database)
    except BaseException:
        database.close()
        raise
    if not found:
        return database, "", ""
    database.close()
    broken = salvage.move_aside(path)
    return _database(path), broken, found


def _database(path: str) -> Database:
    """Open a file that only root can read: SQLite gives the log and its index the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or 0) from None
    return Database(path)
