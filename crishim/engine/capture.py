"""The output of an ExecSync: two pipes read by the daemon's loop, bounded, never blocking the process that writes.

What goes beyond the limit is read and dropped (CVE-2022-1708). When the process has ended, all that it wrote is in
the pipes and is taken; a background process that still holds a pipe open does not delay the answer: the daemon
goes on to read and drop for it, so that it gets no SIGPIPE, until it closes its end.
"""

import asyncio
import fcntl
import os

_CHUNK = 65536


class Capture:
    """Bounded stdout and stderr of one process; `limit` counts both together."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._streams: list[_Stream] = []

    def open(self) -> list[int]:
        """Return the process's stdin, stdout and stderr; the caller closes them after they were passed on."""
        fds = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)]
        for _ in range(2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            fds.append(writing)
            self._streams.append(_Stream(self, reading))
        return fds

    @property
    def stdout(self) -> bytes:
        """What was kept of standard output."""
        return b"".join(self._streams[0].kept)

    @property
    def stderr(self) -> bytes:
        """What was kept of standard error."""
        return b"".join(self._streams[1].kept)

    def keep(self, data: bytes) -> bytes:
        """Return the part of `data` that still fits."""
        part = data[: self._left] if len(data) > self._left else data
        self._left -= len(part)
        return part

    def finish(self) -> None:
        """Take what the ended process left in the pipes: no more than a pipe holds, since others may write on."""
        for stream in self._streams:
            left = stream.capacity()
            while left > 0 and (taken := stream.take()):
                left -= taken

    def close(self) -> None:
        """Keep nothing more; pipes that others hold open are drained on."""
        self._left = 0


class _Stream:
    def __init__(self, capture: Capture, fd: int) -> None:
        self.kept: list[bytes] = []
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
        part = self._capture.keep(data)
        if part:
            self.kept.append(part)
        return len(data)
