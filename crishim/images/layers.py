"""Unpacked layers: `<root>/layers/<name>`, one directory each, in overlayfs's form.

A layer's directory is made as `.new-…`, gets its final, short name (a base-32 counter: many layers must fit into a
page of mount options) by rename when it is whole, and a record in the store. `syncfs` comes after that, once no layer
is being made (it would hold up their files), and only then the record says that it is synced; without that mark a
layer is not trusted after a reboot (design.md). Removal renames to `.gone-…` first. Invariant: a directory with a
final name is whole as long as its record is valid; nothing else is ever used. Out of scope: which layers are needed.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crishim import codec
from crishim.clock import boot_id
from crishim.images.content import disk_error
from crishim.images.records import LayerRecord
from crishim.images.threads import in_thread
from crishim.linux.sync import sync_directory, syncfs
from crishim.linux.trees import remove_tree
from crishim.log import get_logger
from crishim.store.store import Store

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_NEW, _GONE = ".new-", ".gone-"
_PATIENCE = 30.0  # seconds that the sync of a layer waits for others that are being made
log = get_logger("crishim.images")


def short_name(number: int) -> str:
    """Return a number in base 32."""
    digits = ""
    while True:
        digits = _DIGITS[number % 32] + digits
        number //= 32
        if not number:
            return digits


class Layers:
    """The layers of one instance.

    Args:
        store: where the records are.
        root: the layers' directory.
    """

    def __init__(self, store: Store, root: str) -> None:
        self.root = root
        self._store = store
        self._records: dict[str, LayerRecord] = {}
        self._boot = boot_id()
        self._next = 0
        self._work: set[asyncio.Task[None]] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._making: set[str] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.size = 0
        self.inodes = 0

    def open(self) -> int:
        """Load the records and begin to remove what is not whole; return how many directories that is."""
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        present = set(os.listdir(self.root))
        for key, document in self._store.layers.load().items():
            try:
                record = codec.loads(LayerRecord, document)
            except codec.CodecError as error:
                self._store.layers.quarantine(key, str(error))
                continue
            self._next = max(self._next, int(record.directory, 32) + 1)
            if record.directory in present and (record.synced or record.boot == self._boot):
                self._note(record)
            else:
                self._store.layers.delete(key)
        known = {record.directory for record in self._records.values()}
        strays = present - known
        for name in strays:
            self.discard(os.path.join(self.root, name))
        if any(not record.synced for record in self._records.values()):
            self._sync_soon()
        return len(strays)

    def get(self, key: str) -> LayerRecord | None:
        """Return a layer's record."""
        return self._records.get(key)

    def keys(self) -> list[str]:
        """Return the keys of all layers."""
        return list(self._records)

    def path(self, key: str) -> str:
        """Return a layer's directory; KeyError if there is none."""
        return os.path.join(self.root, self._records[key].directory)

    def new_directory(self) -> str:
        """Make an empty directory to unpack into, and return its path."""
        path = os.path.join(self.root, f"{_NEW}{os.urandom(6).hex()}")
        try:
            os.mkdir(path, 0o755)
            os.chmod(path, 0o755)  # noqa: S103  the root of containers
        except OSError as error:
            raise disk_error(error, f"mkdir {path}") from None
        self._making.add(path)
        self._quiet.clear()
        return path

    def publish(self, path: str, key: str, diff_id: str, report: Mapping[str, Any]) -> LayerRecord:
        """Give a finished directory its name and its record; the sync follows by itself."""
        name = short_name(self._next)
        self._next += 1
        record = LayerRecord(
            key=key,
            diff_id=diff_id,
            directory=name,
            size=int(report["bytes"]),
            inodes=int(report["inodes"]),
            boot=self._boot,
            lists_root=bool(report["lists_root"]),
            hides_all="" in report["opaque"],
        )
        self._store.layers.put(key, codec.dumps(record))  # first: a directory without record would stay till a restart
        try:
            os.rename(path, os.path.join(self.root, name))
        except OSError:
            self._store.layers.delete(key)
            raise
        self._made(path)
        self._note(record)
        self._sync_soon()
        return record

    def remove(self, key: str) -> None:
        """Forget a layer at once and delete its files in the background; absent is fine."""
        record = self._records.get(key)
        if record is None:
            return
        self._store.layers.delete(key)
        del self._records[key]
        self.size -= record.size
        self.inodes -= record.inodes
        self.discard(os.path.join(self.root, record.directory))

    def discard(self, path: str) -> None:
        """Delete a directory below the root in the background; absent is fine."""
        self._made(path)
        gone = os.path.join(self.root, f"{_GONE}{os.urandom(6).hex()}")
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            return
        self._start(self._delete(gone))

    async def settled(self) -> None:
        """Wait until nothing is left to delete or to sync."""
        while self._work:
            await asyncio.wait(self._work)

    # --- background ----------------------------------------------------------------------------------------------

    def _made(self, path: str) -> None:
        """Note that a directory is whole or given up."""
        self._making.discard(path)
        if not self._making:
            self._quiet.set()

    def _note(self, record: LayerRecord) -> None:
        self._records[record.key] = record
        self.size += record.size
        self.inodes += record.inodes

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _delete(self, path: str) -> None:
        try:
            await in_thread("remove", lambda: remove_tree(path))
        except OSError as error:
            log.warning("a removed layer could not be deleted; the next start tries again", path=path, error=str(error))

    def _sync_soon(self) -> None:
        if self._syncing is None or self._syncing.done():
            self._syncing = self._start(self._sync())

    async def _sync(self) -> None:
        """Sync all layers that are not; those that come meanwhile get another round."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), _PATIENCE)
        while waiting := [record for record in self._records.values() if not record.synced]:
            try:
                await in_thread("syncfs", self._sync_files)
            except OSError as error:
                # Without the mark they are unpacked again after a reboot; nothing is lost.
                log.warning("layers could not be synced", path=self.root, error=str(error))
                return
            with self._store.transaction():
                for record in waiting:
                    if self._records.get(record.key) is record:
                        self._mark(record)
            await self._store.sync()

    def _mark(self, record: LayerRecord) -> None:
        marked = replace(record, synced=True)
        self._records[record.key] = marked
        self._store.layers.put(record.key, codec.dumps(marked))

    def _sync_files(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        sync_directory(self.root)
