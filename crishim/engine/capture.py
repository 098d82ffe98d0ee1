"""The output of an ExecSync: two pipes read by the daemon's loop, bounded, never blocking the process that writes.

What goes beyond the limit is read and dropped (CVE-2022-1708); so is what goes beyond the memory that all calls share
(`Pool`). When the process has ended, all that it wrote is in the pipes and is taken; a background process that still
holds a pipe open does not delay the answer: the daemon goes on to read and drop for it, so that it gets no SIGPIPE,
until it closes its end.
"""

import asyncio
import fcntl
import os

from crishim.linux import calls

_CHUNK = 65536
ASSURED = 65536
"""Bytes that each capture may keep whatever the others do: a probe's words are never lost for a big output."""

_LARGE = 1 << 20
_TRIM_DELAY = 1.0  # seconds in which an answer is sent


class Pool:
    """The memory that all captures together may hold beyond what each is assured of.

    What was large is given back to the kernel a moment after it was answered: the C library would keep it.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._trimming = False

    def take(self, size: int) -> int:
        """Take up to so many bytes; return how many there were."""
        granted = min(size, self._left)
        self._left -= granted
        return granted

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self._left += size
        if size >= _LARGE and not self._trimming:
            self._trimming = True
            asyncio.get_running_loop().call_later(_TRIM_DELAY, self._trim)

    def _trim(self) -> None:
        self._trimming = False
        asyncio.get_running_loop().run_in_executor(None, calls.trim_heap)


class Capture:
    """Bounded stdout and stderr of one process; `limit` counts both together, and `pool` is shared with others."""

    def __init__(self, limit: int, pool: Pool | None = None) -> None:
        self._left = limit
        self._pool = pool or Pool(limit)
        self._assured = ASSURED
        self._taken = 0
        self._streams: list[_Stream] = []

    def open(self) -> list[int]:
        """Return the process's stdin, stdout and stderr; the caller closes them after they were passed on."""
        fds = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)]
        for _ in range(2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            fds.append(writing)
            self._streams.append(_Stream(self, reading))
        return fds

    def output(self) -> tuple[bytes, bytes]:
        """Return what was kept of standard output and standard error."""
        stdout, stderr = self._streams
        return bytes(stdout.kept), bytes(stderr.kept)

    def keep(self, data: bytes) -> bytes:
        """Return the part of `data` that still fits; once some did not, nothing more is kept."""
        fits = min(len(data), self._left)
        assured = min(fits, self._assured)
        taken = self._pool.take(fits - assured)
        self._assured -= assured
        self._taken += taken
        kept = assured + taken
        self._left = self._left - kept if kept == len(data) else 0
        return data[:kept]

    def finish(self) -> None:
        """Take what the ended process left in the pipes: no more than a pipe holds, since others may write on."""
        for stream in self._streams:
            left = stream.capacity()
            while left > 0 and (taken := stream.take()):
                left -= taken

    def close(self) -> None:
        """Keep nothing, neither more nor what was kept; pipes that others hold open are drained on."""
        self._left = 0
        for stream in self._streams:
            stream.kept = bytearray()
        self._pool.give(self._taken)
        self._taken = 0


class _Stream:
    def __init__(self, capture: Capture, fd: int) -> None:
        self.kept = bytearray()
        self._capture = capture
        self._fd = fd
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.take)

    def capacity(self) -> int:
        """Return how many bytes can lie in the pipe; 0 after its end."""
        return fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ) if self._fd >= 0 else 0

    def take(self) -> int:
        """Read one chunk; return its size, 0 if there is nothing now or the end is reached."""
        if self._fd < 0:
            return 0
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            return 0
        self.kept += self._capture.keep(data)
        return len(data)
