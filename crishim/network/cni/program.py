"""One run of a CNI plugin: a process group of its own, a limit on its time, and a limit on what it prints.

Its output is read while it comes, so that a plugin which never stops printing costs no more memory than the limit. What
ends the wait is the process's end, not the end of its output: a grandchild that keeps that open holds nobody up.
Invariant: when `run` returns or raises, the plugin has ended, or its group was killed; nothing here blocks the loop,
also not for a plugin that sits in the kernel and cannot be killed.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping

from crishim.network.cni.model import CniError, NotRunError

MOST_BYTES = 1 << 20
_TAIL_BYTES = 512
_PIECE_BYTES = 1 << 16
_DEATH_SECONDS = 1.0
_BUSY_ATTEMPTS, _BUSY_SECONDS = 25, 0.2


class _Output:
    """What comes out of a pipe: `most` bytes are kept, the last ones, or the first ones and `on_full` is called."""

    def __init__(self, fd: int, most: int, on_full: Callable[[], None] | None) -> None:
        self._fd = fd
        self._most = most
        self._on_full = on_full
        self._content = bytearray()
        self.is_full = False
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> bool:
        """Take one piece; tell whether there may be more. There is no end of file: the writing end is kept open."""
        try:
            piece = os.read(self._fd, _PIECE_BYTES)
        except BlockingIOError:
            return False
        self._content += piece
        if len(self._content) > self._most:
            if self._on_full is None:
                del self._content[: -self._most]
            else:
                self.is_full = True
                asyncio.get_running_loop().remove_reader(self._fd)
                self._on_full()
                return False
        return True

    def finish(self) -> bytes:
        """Return what was kept, with what still is in the pipe."""
        for _ in range(MOST_BYTES // _PIECE_BYTES):  # a grandchild may go on for ever
            if self.is_full or not self._read():
                break
        return bytes(self._content)


async def run(path: str, document: bytes, environment: Mapping[str, str], seconds: float) -> bytes:
    """Run the plugin at `path` with a document on its standard input; return what it printed.

    Raises:
        CniError: it cannot be started, failed, printed too much, or took longer than `seconds`.
    """
    plugin = os.path.basename(path)
    stop = asyncio.Event()
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(_memory(document))
        output, printing = stack.enter_context(_capture(MOST_BYTES, stop.set))
        messages, saying = stack.enter_context(_capture(_TAIL_BYTES, None))
        process = await _start(path, given, printing, saying, environment)
        ended = await _wait(process, stop, seconds)
        content, tail = output.finish(), _tail(messages.finish())
        if output.is_full:
            raise CniError(plugin, f"printed more than {MOST_BYTES} bytes")
        if not ended:
            raise CniError(plugin, f"did not end within {seconds:g} s and was killed{tail}")
        if process.returncode:
            raise _failure(plugin, process.returncode, content, tail)
        return content


async def _start(
    path: str, given: int, printing: int, saying: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the program; one that is just being written (installers copy plugins in place) is waited for."""
    for attempt in range(_BUSY_ATTEMPTS):
        try:
            return subprocess.Popen(  # noqa: ASYNC220  vfork: back within a millisecond
                [path], stdin=given, stdout=printing, stderr=saying, env=dict(environment), cwd="/", process_group=0
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY or attempt == _BUSY_ATTEMPTS - 1:
                raise NotRunError(os.path.basename(path), f"{path} cannot be run: {error.strerror}") from None
            await asyncio.sleep(_BUSY_SECONDS)
    raise AssertionError("unreachable")


async def _wait(process: "subprocess.Popen[bytes]", stop: asyncio.Event, seconds: float) -> bool:
    """Wait for the end; kill the group when it has to stop, the time is over or the caller is cancelled."""
    loop = asyncio.get_running_loop()
    dead = asyncio.Event()
    try:
        fd = os.pidfd_open(process.pid)
    except OSError as error:
        _end(process)
        raise CniError(os.path.basename(str(process.args)), f"cannot be watched: {error.strerror}") from None

    def on_death() -> None:
        dead.set()
        stop.set()

    loop.add_reader(fd, on_death)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
        return dead.is_set()
    finally:
        try:
            if not dead.is_set():
                _kill(process)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(dead.wait(), _DEATH_SECONDS)
        finally:
            loop.remove_reader(fd)
            os.close(fd)
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Reap the process; one that is not dead yet is killed, and reaped by a thread that may wait for the kernel."""
    if process.poll() is None:
        _kill(process)
        threading.Thread(target=process.wait, name="cni-reaper", daemon=True).start()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _failure(plugin: str, status: int, output: bytes, tail: str) -> CniError:
    try:
        found = json.loads(output)
        code, message, details = found["code"], found.get("msg", ""), found.get("details", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        code = None
    if not isinstance(code, int):
        return CniError(plugin, f"ended with status {status} and no error object{tail}")
    return CniError(plugin, str(message) or "failed", code, str(details))


def _tail(content: bytes) -> str:
    text = content.decode("utf-8", "replace").strip()
    return f": {text}" if text else ""


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("cni", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _capture(most: int, on_full: Callable[[], None] | None) -> Iterator[tuple[_Output, int]]:
    """Give a pipe's reader and its writing end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        yield _Output(reading, most, on_full), writing
    finally:
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)
        os.close(writing)
