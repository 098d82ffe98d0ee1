"""An asynchronous stream of bytes, read by a thread: what a client sends, on its way into an archive's reader.

The thread asks the loop for one piece at a time, so a slow disk holds the client back and memory stays at one piece.
Invariant: a read that waits for a silent client ends at once when the work is cancelled.
"""

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable

from crishim.errors import AbortedError
from crishim.images.registry.transport import Cancel


class Inlet:
    """Reads a stream; made in the event loop, read by one thread.

    Args:
        chunks: pieces of any size, of which empty ones mean nothing.
        cancel: ends the reading.
        received: told the number of bytes of each piece.
    """

    def __init__(self, chunks: AsyncIterator[bytes], cancel: Cancel, received: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks = chunks
        self._cancel = cancel
        self._received = received
        self._piece = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, `b""` at the end; AbortedError when cancelled."""
        if not self._piece:
            self._piece = memoryview(self._next())
            self._received(len(self._piece))
        data = bytes(self._piece[:size])
        self._piece = self._piece[size:]
        return data

    def _next(self) -> bytes:
        waiting = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
        self._cancel.watch(self, waiting.cancel)
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise AbortedError("the archive's stream was given up") from None
        finally:
            self._cancel.unwatch(self)

    async def _take(self) -> bytes:
        async for piece in self._chunks:
            if piece:
                return piece
        return b""
