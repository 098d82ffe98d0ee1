"""CRI log files: `<RFC3339Nano> <stream> <P|F> <text>`, written by the keeper from the container's pipes or terminal.

The hot path takes whole chunks: one read, one timestamp, the prefix put in by `bytes.replace`, one write. Only a
newline ends a line; a line over 16 KiB becomes `P` records and a last `F`. A tail without newline is written as `P` at
the end of the stream, so that joining the records gives exactly the bytes that the container wrote. A write that fails
(disk full) drops the record, never blocks the container, and leaves only whole records in the file; drops are counted
and reported once a minute.

Whoever has the log's directory as a volume may put anything at its path, at any time. So a log is opened without
following a link anywhere (the path that the daemon gives has none), without waiting, and only if it is a plain file
with one name: what is no new file is looked at by O_PATH before it is opened.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time

from crishim.engine.execute.report import StepError
from crishim.engine.keeper.loop import Loop
from crishim.linux import calls
from crishim.outlet import complain

LINE_LIMIT = 16 * 1024
_CHUNK = 64 * 1024
_LARGE_CHUNK = 512 * 1024
_FULL_READS = 4
_WARN_EVERY = 60.0

_second = 0
_stamp = b""


def timestamp() -> bytes:
    """Return the present time as RFC3339Nano in UTC, like `2026-01-02T03:04:05.000000006Z`."""
    global _second, _stamp  # noqa: PLW0603  the text changes once a second; formatting it costs more than the rest
    now = time.time_ns()
    second, nanoseconds = divmod(now, 1_000_000_000)
    if second != _second:
        parts = time.gmtime(second)
        _stamp = b"%04d-%02d-%02dT%02d:%02d:%02d." % parts[:6]
        _second = second
    return _stamp + b"%09dZ" % nanoseconds


class LogFile:
    """One container's log file; both streams append to it. An empty path writes nowhere."""

    __slots__ = ("_dropped", "_fd", "_path", "_warned")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = _open(path) if path else -1
        self._dropped = 0
        self._warned = -_WARN_EVERY

    def reopen(self) -> None:
        """Open the path anew (after rotation) and go on there.

        Raises:
            OSError: the new file cannot be made; the old one stays in use.
        """
        if not self._path:
            return
        fd = _open(self._path)
        os.close(self._fd)
        self._fd = fd

    def write(self, records: bytes) -> None:
        """Append whole records; what the disk does not take is dropped as a whole."""
        if self._fd < 0:
            return
        try:
            written = os.write(self._fd, records)
            if written == len(records):
                return
            written += _write_rest(self._fd, records[written:])
            if written == len(records):
                return
            self._take_back(written)
            number = errno.ENOSPC
        except OSError as error:
            number = error.errno or 0
        self._drop(len(records), number)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take_back(self, written: int) -> None:
        """Cut off what a short write left, so that the file holds whole records only."""
        try:
            os.ftruncate(self._fd, max(0, os.fstat(self._fd).st_size - written))
        except OSError:
            return

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

    __slots__ = ("_file", "_full", "_head", "_loop", "_partial", "_pending", "_size", "fd")

    def __init__(self, loop: Loop, fd: int, name: str, file: LogFile) -> None:
        self.fd = fd
        self._loop = loop
        self._file = file
        self._head = b" " + name.encode() + b" F "
        self._partial = b" " + name.encode() + b" P "
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
            self._file.write(self._records(self._pending, timestamp(), self._partial))
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
        if self._pending:
            data = self._pending + data
        end = data.rfind(b"\n") + 1
        stamp = timestamp()
        if end:
            records = self._lines(data[: end - 1], stamp)
            self._pending = data[end:]
        else:
            records = b""
            self._pending = data
        if len(self._pending) > LINE_LIMIT:
            keep = (len(self._pending) - 1) % LINE_LIMIT + 1
            cut = len(self._pending) - keep
            records += self._records(self._pending[:cut], stamp, self._partial)
            self._pending = self._pending[cut:]
        if records:
            self._file.write(records)

    def _lines(self, body: bytes, stamp: bytes) -> bytes:
        """Return the records of complete lines; `body` lacks the last newline."""
        if _has_long_line(body):
            return b"".join([self._long(line, stamp) for line in body.split(b"\n")])
        prefix = stamp + self._head
        return prefix + body.replace(b"\n", b"\n" + prefix) + b"\n"

    def _long(self, line: bytes, stamp: bytes) -> bytes:
        """Return the records of one line of any length: P for all pieces but the last."""
        rest = (len(line) - 1) % LINE_LIMIT + 1 if line else 0
        cut = len(line) - rest
        return self._records(line[:cut], stamp, self._partial) + stamp + self._head + line[cut:] + b"\n"

    @staticmethod
    def _records(data: bytes, stamp: bytes, head: bytes) -> bytes:
        """Return records of at most LINE_LIMIT bytes each."""
        prefix = stamp + head
        return b"".join(
            [prefix + data[start : start + LINE_LIMIT] + b"\n" for start in range(0, len(data), LINE_LIMIT)]
        )


def _capacity(fd: int) -> int:
    """Return how many bytes can lie in a pipe; a generous number for a terminal, which holds a few pages."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return _LARGE_CHUNK


def _has_long_line(body: bytes) -> bool:
    """Tell whether a line is over the limit, looking at a few places instead of every line."""
    start, end = 0, len(body)
    while end - start > LINE_LIMIT:
        newline = body.rfind(b"\n", start, start + LINE_LIMIT + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False
