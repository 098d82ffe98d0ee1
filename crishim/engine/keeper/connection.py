"""One connection of the daemon to its keeper: messages in, messages out, never blocking the loop.

Requests carry `n`, answers repeat it; events have none. What the socket does not take at once waits in a queue; a
peer that reads nothing for a thousand messages is dropped (it will reconnect and get the journal).
"""

import _socket
import os
from collections.abc import Callable

from crishim.engine import wire
from crishim.engine.keeper.loop import READ, WRITE, Loop

_MAX_QUEUE = 1000


class Connection:
    """Owns its socket; `on_message(connection, message, fds)` gets each request and the ownership of its fds."""

    def __init__(
        self,
        loop: Loop,
        sock: _socket.socket,
        on_message: Callable[["Connection", wire.Message, list[int]], None],
        on_close: Callable[["Connection"], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._queue: list[tuple[bytes, list[int]]] = []
        self.open = True
        sock.setblocking(False)
        loop.add(sock.fileno(), self._on_ready)

    def send(self, message: wire.Message, fds: tuple[int, ...] = ()) -> None:
        """Send or queue a message; copies of `fds` go along and the caller keeps its own."""
        if not self.open:
            return
        data, memfd = wire.encode(message)
        owned = [os.dup(fd) for fd in fds] + ([memfd] if memfd >= 0 else [])
        self._queue.append((data, owned))
        if len(self._queue) > _MAX_QUEUE:
            self.close()
            return
        self._flush()

    def answer(self, request: wire.Message, **fields: object) -> None:
        """Answer a request."""
        self.send({"n": request.get("n", 0), **fields})

    def close(self) -> None:
        """Close; the owner hears of it once."""
        if not self.open:
            return
        self.open = False
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        for _, fds in self._queue:
            wire.close_all(fds)
        self._queue.clear()
        self._on_close(self)

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                wire.send_packet(self._sock, data, fds)
            except BlockingIOError:
                self._loop.modify(self._sock.fileno(), READ | WRITE)
                return
            except wire.ClosedError:
                self.close()
                return
            wire.close_all(fds)
            self._queue.pop(0)

    def _on_ready(self) -> None:
        if self._queue:
            self._flush()
            if self.open and not self._queue:
                self._loop.modify(self._sock.fileno(), READ)
        while self.open:
            try:
                message, fds = wire.receive(self._sock)
            except BlockingIOError:
                return
            except wire.ClosedError:
                self.close()
                return
            self._on_message(self, message, fds)
