"""One run of a CNI plugin: a process group of its own, a limit on its time and its output.

Its streams are files in memory, not pipes: a grandchild that keeps them open holds nobody up. Invariant: when `run`
returns or raises, the plugin has ended and is reaped, and its group was killed unless it ended by itself in time.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping

from crishim.network.cni.model import CniError

MOST_BYTES = 1 << 20
_TAIL_BYTES = 512
_LOOK_SECONDS = 0.2


async def run(path: str, document: bytes, environment: Mapping[str, str], seconds: float) -> bytes:
    """Run the plugin at `path` with a document on its standard input; return what it printed.

    Raises:
        CniError: it cannot be started, failed, printed too much, or took longer than `seconds`.
    """
    plugin = os.path.basename(path)
    with _memory(document) as given, _memory(b"") as printed, _memory(b"") as said:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220  vfork: back within a millisecond
                [path], stdin=given, stdout=printed, stderr=said, env=dict(environment), cwd="/", process_group=0
            )
        except OSError as error:
            raise CniError(plugin, f"{path} cannot be run: {error.strerror}") from None
        ended = await _wait(process, seconds, (printed, said))
        if _is_large(printed, said):
            raise CniError(plugin, f"printed more than {MOST_BYTES} bytes")
        if not ended:
            raise CniError(plugin, f"did not end within {seconds:g} s and was killed{_tail(said)}")
        output = os.pread(printed, MOST_BYTES, 0)
        if process.returncode:
            raise _failure(plugin, process.returncode, output, _tail(said))
        return output


async def _wait(process: "subprocess.Popen[bytes]", seconds: float, outputs: tuple[int, int]) -> bool:
    """Wait for the end; kill the group when the time is over, it prints too much, or the caller is cancelled."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    ended = asyncio.Event()
    fd = os.pidfd_open(process.pid)
    loop.add_reader(fd, ended.set)
    try:
        while not ended.is_set() and (left := deadline - loop.time()) > 0 and not _is_large(*outputs):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), min(left, _LOOK_SECONDS))
        return ended.is_set()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        if not ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_large(*outputs: int) -> bool:
    return any(os.fstat(fd).st_size > MOST_BYTES for fd in outputs)


def _failure(plugin: str, status: int, output: bytes, tail: str) -> CniError:
    try:
        found = json.loads(output)
        code, message, details = found["code"], found.get("msg", ""), found.get("details", "")
        number = int(code)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return CniError(plugin, f"ended with status {status} and no error object{tail}")
    return CniError(plugin, str(message) or "failed", number, str(details))


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace").strip()
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
