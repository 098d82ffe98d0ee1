"""Disk space for the store's last commits: on a full disk what exists can still be ended and removed.

The blocks of the write-ahead log are allocated ahead (fallocate(2), KEEP_SIZE: its size stays as SQLite left it), and
the database keeps free pages (`database.make_room`). Commits overwrite the log from its beginning after each
checkpoint, and a checkpoint overwrites pages that the file has, so neither asks the file system for anything. That only
removals use the space is the callers' part: `pods.disk` refuses on a full disk what would make things.

SQLite deletes its log when it closes the file. A second name (`-reserve`) keeps the blocks for the next start; its
header is cleared then, so that nothing in it is taken for commits. The log's index is made anew at each start: a spare
file is given up for it where there is no space. SQLite maps the index and allocates one block of each page; with blocks
smaller than a page, a full disk would end the daemon by SIGBUS, so all of it is allocated too.

Invariant: none of this decides what is stored. Where it cannot be done (no space yet, no fallocate), it is left out.
Sources: sqlite.org/walformat.html; fcntl_locking(2): closing any fd of the index drops SQLite's locks in the process,
hence the one here stays open for as long as SQLite has the file.
"""

import contextlib
import os

from crishim.linux.allocate import allocate

LOG_BYTES = 4 << 20
"""Blocks of the log: two checkpoints' worth, see `store.CHECKPOINT_PAGES`."""
INDEX_BYTES = 64 << 10
"""Two parts of the index, 4 K pages of the log each."""
SPARE_BYTES = 256 << 10
_HEADER = 32  # bytes, walformat.html section 1.1


class Reserve:
    """The reserve of one database: made before SQLite opens the file, closed after SQLite has closed it.

    Args:
        path: of the database, which exists.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._log, self._kept, self._spare = f"{path}-wal", f"{path}-reserve", f"{path}-spare"
        self._index = -1
        self._restore()
        self._make_room()

    def fill(self) -> None:
        """Allocate what is missing; SQLite has made its log and the index."""
        with contextlib.suppress(OSError):
            self._index = os.open(f"{self._path}-shm", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            allocate(self._index, 0, INDEX_BYTES)
        with contextlib.suppress(OSError):
            _allocate(self._log, os.O_RDWR, LOG_BYTES)
        try:
            _allocate(self._spare, os.O_RDWR | os.O_CREAT, SPARE_BYTES)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._spare)

    def keep(self) -> None:
        """Give log and index their second names, the index the spare's if that was given up: SQLite deletes both."""
        with contextlib.suppress(OSError):
            self._drop()
            os.link(self._log, self._kept)
        with contextlib.suppress(OSError):
            os.link(f"{self._path}-shm", self._spare)

    def close(self) -> None:
        """Let go; a log that is still there was not copied back, and is no reserve."""
        if self._index >= 0:
            os.close(self._index)
            self._index = -1
        with contextlib.suppress(OSError):
            if os.path.lexists(self._log):
                self._drop()

    def _restore(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.lexists(self._log) or not os.path.getsize(self._path):
                self._drop()
                return
            fd = os.open(self._kept, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_size:
                    os.pwrite(fd, bytes(_HEADER), 0)
            finally:
                os.close(fd)
            os.rename(self._kept, self._log)

    def _make_room(self) -> None:
        """Give up the spare file if there is no space for what SQLite makes when it opens the database."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._path)
            if disk.f_bavail * disk.f_frsize < SPARE_BYTES:
                os.unlink(self._spare)

    def _drop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._kept)


def _allocate(path: str, flags: int, size: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        allocate(fd, 0, size)
    finally:
        os.close(fd)
