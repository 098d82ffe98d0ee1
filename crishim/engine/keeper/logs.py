"""CRI log files: where the records of a container's output are appended (`records` says what they look like).

A write that fails (disk full) drops the records, never blocks the container, and leaves only whole records in the file;
drops are counted and reported once a minute.

Whoever has the log's directory as a volume may put anything at its path, at any time. So a log is opened without
following a link anywhere (the path that the daemon gives has none), without waiting, and only if it is a plain file
with one name: what is no new file is looked at by O_PATH before it is opened.

A keeper that goes on where an earlier one was killed goes on in that one's file, which may have been renamed since.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import Self

from crishim.engine.execute.report import StepError
from crishim.engine.keeper.loop import Loop
from crishim.engine.keeper.records import Lines, Part, stamp
from crishim.linux import calls
from crishim.outlet import complain

_CHUNK = 64 * 1024
_LARGE_CHUNK = 512 * 1024
_FULL_READS = 4
_WARN_EVERY = 60.0
_NEIGHBOURS = 4096


class LogFile:
    """One container's log file; both streams append to it. An empty path writes nowhere.

    `file` is the device and inode of what is open, two zeros for nothing.
    """

    __slots__ = ("_dropped", "_fd", "_path", "_warned", "file")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self.file = (0, 0)
        self._dropped = 0
        self._warned = -_WARN_EVERY
        if path:
            self._use(_open(path))

    @classmethod
    def adopt(cls, path: str) -> Self:
        """Open the log of a container that runs already; one that cannot be opened writes nowhere until `reopen`."""
        try:
            return cls(path)
        except (OSError, StepError) as error:
            complain(f"crishim keeper: {error}; the container's output is dropped until its log is reopened")
            log = cls("")
            log._path = path
            return log

    @property
    def nowhere(self) -> bool:
        """Tell whether nothing is written."""
        return self._fd < 0

    def reopen(self) -> None:
        """Open the path anew (after rotation) and go on there.

        Raises:
            OSError: the new file cannot be made; the old one stays in use.
        """
        if self._path:
            self._use(_open(self._path))

    def resume(self, file: tuple[int, int]) -> bool:
        """Go on in the file that an earlier keeper had open, where it is still beside the path; False if it is not."""
        if file != self.file and self._path and any(file):
            fd = _find(self._path, file)
            if fd >= 0:
                self._use(fd)
        return file == self.file

    def end(self) -> int:
        """Return the length of the file, where the next records go."""
        return os.lseek(self._fd, 0, os.SEEK_END) if self._fd >= 0 else 0

    def write(self, parts: list[Part], end: int) -> None:
        """Append whole records; what the disk does not take is dropped as a whole, down to `end`."""
        if self._fd < 0:
            return
        size = sum(map(len, parts))
        number = errno.ENOSPC
        try:
            written = os.writev(self._fd, parts)
            if written == size:
                return
            written += _write_rest(self._fd, b"".join(parts)[written:])
            if written == size:
                return
        except OSError as error:
            number = error.errno or 0
        self._take_back(end)
        self._drop(size, number)

    def complete(self, parts: list[Part], end: int) -> None:
        """Append what is missing of records that an earlier keeper may have begun to append at `end`."""
        records = b"".join(parts)
        records = records.removeprefix(self._read(end, len(records)))
        if records:
            self.write([records], end)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _use(self, fd: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        status = os.fstat(fd)
        self.file = (status.st_dev, status.st_ino)

    def _read(self, at: int, size: int) -> bytes:
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, at)
        finally:
            os.close(fd)

    def _take_back(self, end: int) -> None:
        """Cut off what a short write left, so that the file holds whole records only."""
        with contextlib.suppress(OSError):
            if self.end() > end:
                os.ftruncate(self._fd, end)

    def _drop(self, size: int, number: int) -> None:
        self._dropped += size
        if time.monotonic() - self._warned >= _WARN_EVERY:
            self._warned = time.monotonic()
            complain(f"crishim keeper: {self._path}: {os.strerror(number)}; {self._dropped} bytes of log dropped")


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TRIES = 8
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _open(path: str) -> int:
    """Open or make a log.

    Raises:
        StepError: what is there is no plain file, or a link is on the way.
        OSError: it cannot be opened or made.
    """
    for _ in range(_TRIES):  # what is there may go in between
        try:
            return calls.openat2(calls.AT_FDCWD, path, _FLAGS | _NEW, 0o640, calls.RESOLVE_NO_SYMLINKS)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return _open_old(path)
        except OSError as error:
            _refuse_link(path, error)
            raise
    raise StepError(f"log file {path}: is made and removed by others all the time", errno.EBUSY, path)


_NEW = os.O_CREAT | os.O_EXCL


def _open_old(path: str) -> int:
    """Open a file that is there already."""
    try:
        found = calls.openat2(calls.AT_FDCWD, path, os.O_PATH, 0, calls.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        _refuse_link(path, error)
        raise
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
            raise StepError(f"log file {path}: is {kind}; only a plain file can be a log: remove it", 0, path)
        if status.st_nlink > 1:
            raise StepError(f"log file {path}: has other names (hard links), which may be others': remove it", 0, path)
        return os.open(f"/proc/self/fd/{found}", _FLAGS)
    finally:
        os.close(found)


def _refuse_link(path: str, error: OSError) -> None:
    if error.errno == errno.ELOOP:
        raise StepError(
            f"log file {path}: a symbolic link is there or on the way: remove it", errno.ELOOP, path
        ) from None


def _find(path: str, file: tuple[int, int]) -> int:
    """Return an fd of a renamed log: rotation leaves it in its directory, its old name before something new."""
    directory, _, name = path.rpartition("/")
    with contextlib.suppress(OSError), os.scandir(directory or ".") as entries:
        for _, entry in zip(range(_NEIGHBOURS), entries, strict=False):
            if not entry.name.startswith(name):
                continue
            with contextlib.suppress(OSError, StepError):  # what else lies there is nothing to us
                fd = _open_old(f"{directory or '.'}/{entry.name}")
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) == file:
                    return fd
                os.close(fd)
    return -1


def _write_rest(fd: int, rest: bytes) -> int:
    """Write on after a short write; return how much was taken before the disk refused."""
    written = 0
    while written < len(rest):
        try:
            written += os.write(fd, rest[written:])
        except OSError:
            break
    return written


class Stream:
    """One pipe or terminal whose bytes become records of `name` (stdout or stderr)."""

    __slots__ = ("_file", "_full", "_lines", "_loop", "_pending", "_size", "fd")

    def __init__(self, loop: Loop, fd: int, name: str, file: LogFile) -> None:
        self.fd = fd
        self._loop = loop
        self._file = file
        self._lines = Lines(name)
        self._pending = b""
        self._size = _CHUNK
        self._full = 0
        os.set_blocking(fd, False)
        loop.add(fd, self._on_ready)

    def drain(self) -> None:
        """Take everything that is there now, then close: called when the container has ended.

        What it wrote is in the pipe, so no more than a pipe holds is taken: one that lives elsewhere and was handed
        the pipe may write without end.
        """
        left = _capacity(self.fd) if self.fd >= 0 else 0
        while self.fd >= 0 and left > 0 and (taken := self._take()):
            left -= taken
        self.close()

    def close(self) -> None:
        """Write the tail and stop reading."""
        if self.fd < 0:
            return
        self._loop.remove(self.fd)
        os.close(self.fd)
        self.fd = -1
        if self._pending:
            self._file.write([self._lines.unfinished(self._pending, stamp(time.time_ns()))], self._file.end())
            self._pending = b""

    def _on_ready(self) -> None:
        self._take()

    def _take(self) -> int:
        """Read one chunk; return its size, 0 if there is nothing now or the end is reached."""
        try:
            data = os.read(self.fd, self._size)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last slave of the terminal is closed
            data = b""
        if not data:
            self.close()
            return 0
        if len(data) == self._size or len(data) >= _CHUNK:
            self._grow()
        self.feed(data)
        return len(data)

    def _grow(self) -> None:
        """Give a stream that keeps its pipe full a larger one, so that fewer reads carry more."""
        self._full += 1
        if self._full == _FULL_READS:
            try:
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _LARGE_CHUNK)
                self._size = _LARGE_CHUNK
            except OSError:
                return

    def feed(self, data: bytes) -> None:
        """Turn bytes into records and write them."""
        parts, self._pending = self._lines.take(self._pending, data, stamp(time.time_ns()))
        if parts:
            self._file.write(parts, self._file.end())


def _capacity(fd: int) -> int:
    """Return how many bytes can lie in a pipe; a generous number for a terminal, which holds a few pages."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return _LARGE_CHUNK
