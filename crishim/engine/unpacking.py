"""The unpacker as the daemon sees it: asked of the spawner with the first layer, let go when it has been idle.

So decompressors are loaded once for many layers, and neither the spawner nor any keeper carries them. Out of scope:
what is extracted (`images`).
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from crishim.engine import wire
from crishim.engine.channel import Channel
from crishim.errors import InternalError, UnavailableError

_IDLE = 1.0  # seconds; a new one takes 15 ms
_TRIES = 3


class Unpacking:
    """At most one unpacker.

    Args:
        ask: passes a socket on to the spawner with the request to fork the unpacker that serves it.
    """

    def __init__(self, ask: Callable[[int], Awaitable[None]]) -> None:
        self._ask = ask
        self._channel: Channel | None = None
        self._starting = asyncio.Lock()
        self._busy = 0
        self._letting_go: asyncio.TimerHandle | None = None

    async def extract(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Unpack a layer's blob into a directory by a locked-down child; return its report.

        Args:
            fds: the blob, the pipe that says how much of it is there, the directory; they stay the caller's.
            options: see `unpack.extract.run`.
        """
        self._busy += 1
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        try:
            return await self._extract(fds, options)
        finally:
            self._busy -= 1
            if not self._busy and self._channel is not None:
                self._letting_go = asyncio.get_running_loop().call_later(_IDLE, self.close)

    def close(self) -> None:
        """Let the unpacker end; children that extract go on."""
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        if self._channel is not None:
            channel, self._channel = self._channel, None
            channel.close()

    async def _extract(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> dict[str, Any]:
        text = b""
        for _ in range(_TRIES):
            text = await self._said(fds, options)
            if text:  # a child took it up; else unpacker or spawner died with the request in its hands
                break
        lines = [line for line in text.split(b"\n") if line]
        if not lines:
            raise InternalError("the extraction process ended without a report: it was killed, or there was no memory")
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    async def _said(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> bytes:
        """Return all that a child writes to its report, which begins with an empty line."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            await self._send({"options": dict(options)}, (*fds, writing))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return await _read_all(reading)

    async def _send(self, message: wire.Message, fds: tuple[int, ...]) -> None:
        """Send to the unpacker; one that is not there, or has died, is replaced."""
        with contextlib.suppress(UnavailableError):
            if self._channel is not None:
                self._channel.send(message, fds)
                return
        async with self._starting:
            if self._channel is None or not self._channel.open:
                await self._start()
        if self._channel is None:
            raise UnavailableError("the engine is closed")
        self._channel.send(message, fds)

    async def _start(self) -> None:
        ours, theirs = wire.pair()
        try:
            await self._ask(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, "unpacker", lambda _message, fds: wire.close_all(fds), lambda: None)


async def _read_all(fd: int) -> bytes:
    """Read a pipe to its end without blocking the loop; closes it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    parts: list[bytes] = []
    os.set_blocking(fd, False)

    def on_readable() -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if data:
            parts.append(data)
        elif not done.done():
            done.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return b"".join(parts)
