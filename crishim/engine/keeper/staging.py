"""All of a container's output, from its pipes or terminal to its log: no line lost or doubled by a killed keeper.

```
note ► splice: stream → STAGING ► tee: staging → scratch, read, format ► append ► finish ► splice: staging → /dev/null
```
The staging pipe is the container's, held by its agent as its other descriptors are; so are the bytes in it. One chunk
lies there at a time. Wherever a keeper is killed (`state` says how the stores are ordered):

| staging | the noted number | what happened | what another keeper does |
| --- | --- | --- | --- |
| empty | done, or begun | nothing since the last chunk, or the chunk is done whole | nothing |
| empty | begun, a tail | the unfinished line may be in the log | does it again |
| not empty | begun | a part of the chunk, or all of it, may be in the log | does it again |
| not empty | done | all is in the log; a part may be thrown away already (splice(2) heeds signals) | throws it away |

Doing it again gives the same bytes, for the time of its records was noted too; what is there of them stays, and the
rest is appended. So one who reads the log all the while sees nothing odd.

Nothing waits: each readiness is one chunk, of what staging holds at most. The scratch pipe is the process's, and never
smaller than a staging pipe: tee(2) copies a chunk whole, and it is read to its end, though a container may have made
packets of it (O_DIRECT, pipe(2)): one container's bytes never come into another's log.
"""

import contextlib
import errno
import fcntl
import os
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from crishim.engine.keeper.logs import LogFile
from crishim.engine.keeper.records import LINES, NAMES, Part, stamp
from crishim.engine.keeper.state import SHORT, TAIL, State
from crishim.linux import calls

_LARGE = 512 * 1024
_TERMINAL = 16 * 1024
_TERMINAL_HOLDS = 1024 * 1024
_FULL_CHUNKS = 4
_AT_ONCE = os.SPLICE_F_NONBLOCK


class Registry(Protocol):
    """What is needed of an event loop."""

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` while `fd` is readable."""

    def remove(self, fd: int) -> None:
        """Forget `fd`."""


class Scratch:
    """A pipe in which staged bytes are read while they stay staged; and the way out for those that are done."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self._size = 0
        self._reading = self._writing = -1

    def hold(self, size: int) -> None:
        """Become at least so large.

        Raises:
            OSError: EPERM, beyond the pipe buffers of a user without rights (pipe(7)).
        """
        if self._reading < 0:
            self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._size = fcntl.fcntl(self._writing, fcntl.F_GETPIPE_SZ)
        if size > self._size:
            self._size = fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, size)

    def look(self, staging: int, size: int) -> bytes:
        """Return the bytes that are staged; they stay there."""
        try:
            copied = calls.tee(staging, self._writing, size)
            data = os.read(self._reading, copied)
            while len(data) < copied:  # one packet at a time
                data += os.read(self._reading, copied - len(data))
        except BaseException:
            self._renew()
            raise
        if copied < size:
            raise OSError(errno.ENOBUFS, f"tee: {copied} of {size} bytes")
        return data

    def drop(self, staging: int, size: int) -> None:
        """Throw staged bytes away: what they are is done."""
        while size > 0:
            size -= os.splice(staging, self._null, size, flags=_AT_ONCE)

    def _renew(self) -> None:
        """Leave nothing in it, whatever happened."""
        size, self._size = self._size, 0
        for fd in (self._reading, self._writing):
            os.close(fd)
        self._reading = self._writing = -1
        self.hold(size)


_scratch: Scratch | None = None


def _shared() -> Scratch:
    """Return the process's own scratch pipe."""
    global _scratch  # noqa: PLW0603  one a process, whatever is forked from it
    if _scratch is None or _scratch.process != os.getpid():
        _scratch = Scratch()
    return _scratch


class _Stream:
    """One pipe or terminal; `size` is how much is asked of it at once; one that `reads` cannot be spliced."""

    __slots__ = ("fd", "full", "index", "lines", "reads", "size")

    def __init__(self, name: str, fd: int, size: int) -> None:
        self.fd = fd
        self.index = NAMES.index(name)
        self.lines = LINES[self.index]
        self.reads = False
        self.full = 0
        self.size = size


class Output:
    """The output of one container; owns the log's file, the fds that are added, and staging's two ends."""

    __slots__ = ("_begun", "_log", "_loop", "_reading", "_scratch", "_state", "_streams", "_writing", "taken")

    def __init__(self, loop: Registry, log: LogFile, state: State, staging: tuple[int, int]) -> None:
        self.taken = 0
        self._loop = loop
        self._log = log
        self._state = state
        self._reading, self._writing = staging
        self._streams: list[_Stream] = []
        self._begun = False
        self._scratch = _shared()
        self._scratch.hold(_capacity(self._writing, 0))
        for fd in staging:
            os.set_blocking(fd, False)
        if not state.note().inode:
            state.writes_to(*log.file)

    def add(self, name: str, fd: int) -> None:
        """Take output from `fd` from now on, as that of the stream `name`."""
        os.set_blocking(fd, False)
        stream = _Stream(name, fd, min(_capacity(fd, _TERMINAL), _capacity(self._writing, 0)))
        self._streams.append(stream)
        self._loop.add(fd, partial(self._ready, stream))

    def recover(self) -> None:
        """Finish the chunk that was being taken when an earlier keeper was killed, or when this one failed."""
        state, note = self._state, self._state.note()
        same = self._log.resume((note.device, note.inode))
        staged = _staged(self._reading)
        if note.number > state.number and (staged or note.kind & TAIL):
            index = note.kind & 1
            parts, pending = self._records(index, note.time, staged)
            if same:
                self._log.complete(parts, note.length)
            else:
                self._log.write(parts, self._log.end())
            state.finish(index, pending)
        self._scratch.drop(self._reading, staged)
        self._begun = False

    def reopen(self) -> None:
        """Go on in a new file at the log's path.

        Raises:
            OSError: it cannot be made; the old one stays in use.
        """
        if self._begun:
            self.recover()
        self._log.reopen()
        self._state.writes_to(*self._log.file)

    def drain(self) -> None:
        """Take everything that is there now, then close: called when the container has ended.

        What it wrote is in the pipe, so no more than a pipe holds is taken: one that lives elsewhere and was handed
        the pipe may write without end.
        """
        for stream in self._streams:
            left = _capacity(stream.fd, _TERMINAL_HOLDS) if stream.fd >= 0 else 0
            while stream.fd >= 0 and left > 0 and (size := self._take(stream)):
                left -= size
        for index in (0, 1):
            self._write_tail(index)
        self.close()

    def close(self) -> None:
        """Let go of everything; another keeper may go on."""
        for stream in self._streams:
            self._leave(stream)
        self._streams.clear()
        if self._reading >= 0:
            os.close(self._reading)
            os.close(self._writing)
            self._reading = self._writing = -1
        self._log.close()

    def _ready(self, stream: _Stream) -> None:
        self._take(stream)

    def _take(self, stream: _Stream) -> int:
        """Take one chunk; return its size, 0 if there is nothing now or the end is reached."""
        if self._begun:
            self.recover()
        log, state, index, now = self._log, self._state, stream.index, time.time_ns()
        end = log.end()
        state.begin(index, now, log.file, end)
        try:
            size = _stage(stream, self._writing)
        except BlockingIOError:
            return 0
        if not size:
            self._leave(stream)
            self._write_tail(index)
            return 0
        self.taken += size
        self._begun = True
        parts, pending = self._records(index, now, size)
        if parts:
            log.write(parts, end)
        state.finish(index, pending)
        self._scratch.drop(self._reading, size)
        self._begun = False
        if size * 8 >= stream.size * 7:
            self._grow(stream)
        return size

    def _records(self, index: int, now: int, staged: int) -> tuple[list[Part], bytes]:
        """Return the records of what is staged, and the unfinished line after it; or of the unfinished line itself."""
        lines, pending = LINES[index], self._state.pending[index]
        if self._log.nowhere:
            return [], b""
        if not staged:
            return [lines.unfinished(pending, stamp(now))], b""
        parts, pending = lines.take(pending, self._scratch.look(self._reading, staged), stamp(now))
        if len(pending) > SHORT and not self._state.room(index):
            parts.append(lines.unfinished(pending, stamp(now)))  # joined with what follows, it is the line
            pending = b""
        return parts, pending

    def _write_tail(self, index: int) -> None:
        """Write the unfinished line of a stream that has ended."""
        if self._begun:
            self.recover()
        if not self._state.pending[index]:
            return
        now, end = time.time_ns(), self._log.end()
        self._begun = True
        self._state.begin(index | TAIL, now, self._log.file, end)
        parts, pending = self._records(index, now, 0)
        self._log.write(parts, end)
        self._state.finish(index, pending)
        self._begun = False

    def _grow(self, stream: _Stream) -> None:
        """Give a stream that keeps its pipe full a larger one, so that fewer chunks carry more."""
        stream.full += 1
        if stream.full == _FULL_CHUNKS and _capacity(stream.fd, 0):
            with contextlib.suppress(OSError):
                self._scratch.hold(_LARGE)
                for fd in (self._writing, stream.fd):
                    if _capacity(fd, 0) < _LARGE:
                        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _LARGE)
                stream.size = _LARGE

    def _leave(self, stream: _Stream) -> None:
        """Take no more from a stream."""
        if stream.fd >= 0:
            self._loop.remove(stream.fd)
            os.close(stream.fd)
            stream.fd = -1


def _stage(stream: _Stream, staging: int) -> int:
    """Move what a stream has into the staging pipe; return how much, 0 at its end."""
    try:
        if stream.reads:
            return os.write(staging, os.read(stream.fd, stream.size))
        return os.splice(stream.fd, staging, stream.size, flags=_AT_ONCE)
    except OSError as error:
        if error.errno == errno.EIO:  # the last slave of the terminal is closed
            return 0
        if error.errno != errno.EINVAL or stream.reads:
            raise
    stream.reads = True  # a terminal whose driver does not splice
    return _stage(stream, staging)


def _staged(staging: int) -> int:
    """Return how many bytes lie in a pipe (FIONREAD, pipe(7))."""
    return int.from_bytes(fcntl.ioctl(staging, termios.FIONREAD, bytes(4)), sys.byteorder)


def _capacity(fd: int, other: int) -> int:
    """Return how many bytes can lie in a pipe; `other` for what is none."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return other
