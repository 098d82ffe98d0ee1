"""The instance's state in one SQLite file: what must survive a restart of the daemon, and most of it a reboot.

Used from the event loop's thread, synchronously: a commit costs some tens of microseconds and no fsync. Where a
change must survive a crash of the machine (images, names, layers), the caller awaits `sync()`, whose fsync runs in
a thread and is shared by all who wait. Out of scope: what the documents mean.

Invariants: there is one writer; a file of a newer version is refused and left as it is; a corrupt file is moved
aside, what can be read of it is kept, and the daemon serves on.
"""

import asyncio
import os
import threading
from contextlib import AbstractContextManager
from typing import Self

from crishim.errors import CrishimError, KernelError
from crishim.log import get_logger
from crishim.store import migrate, salvage
from crishim.store.database import PAGE, Database, checkpoint, flush, make_room
from crishim.store.objects import Objects, Quarantine
from crishim.store.reserve import Reserve
from crishim.store.tables import Documents, Leases, Names, Values

CHECKPOINT_PAGES = 512
"""Pages in the write-ahead log, as estimated, after which it is copied back: half of what is reserved for it."""

log = get_logger("crishim.store")


class Store:
    """All tables of one instance; made by `Store.open`."""

    def __init__(self, database: Database, reserve: Reserve) -> None:
        self._database = database
        self._reserve = reserve
        self._copying = threading.Lock()
        self._closed = False
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
        database, reserve, broken, found = _sound(path)
        try:
            migrate.refuse_newer(database)
            database.configure()
            migrate.migrate(database)
            saved = salvage.salvage(broken, database) if broken else 0
        except BaseException:
            reserve.keep()
            database.close()
            reserve.close()
            raise
        reserve.fill()
        database.pages = min(os.path.getsize(path) // PAGE, CHECKPOINT_PAGES)  # a large file gets its room soon
        store = cls(database, reserve)
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
        """Copy everything into the one file and close it, once no thread has it open."""
        with self._copying:
            self._reserve.keep()
            self._database.close()
            self._reserve.close()
            self._closed = True

    async def _flush(self, before: asyncio.Task[None] | None) -> None:
        """Flush once the one before is through; who comes until then shares this one."""
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._waiting = self._waiting, None
        await asyncio.to_thread(flush, self._database.path)

    def _count(self) -> None:
        if self._database.pages < CHECKPOINT_PAGES or (self._checkpoint is not None and not self._checkpoint.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no loop runs (a tool, a test): closing the file checkpoints it
        self._database.pages = 0
        self._checkpoint = loop.create_task(self._copy_back(), name="store checkpoint")

    def _copy_back_now(self) -> None:
        with self._copying:
            if not self._closed:
                make_room(self._database.path)
                checkpoint(self._database.path)

    async def _copy_back(self) -> None:
        try:
            await asyncio.to_thread(self._copy_back_now)
        except CrishimError as error:  # the log holds all; the next one tries again
            log.warning("the store's log could not be copied back", error=str(error))


def _sound(path: str) -> tuple[Database, Reserve, str, str]:
    """Open a database that works; return it, where a corrupt one was moved to, and what was wrong with that."""
    database, reserve = _database(path)
    try:
        found = salvage.corruption(database)
    except BaseException:
        database.close()
        reserve.close()
        raise
    if not found:
        return database, reserve, "", ""
    database.close()
    reserve.close()
    broken = salvage.move_aside(path)
    return *_database(path), broken, found


def _database(path: str) -> tuple[Database, Reserve]:
    """Open a file that only root can read: SQLite gives the log and its index the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or 0) from None
    reserve = Reserve(path)
    return Database(path), reserve
