"""The daemon's end of a SOCK_SEQPACKET socket in asyncio: requests with answers, and events.

asyncio's streams refuse SOCK_SEQPACKET, so the loop's readers and writers and our own recvmsg are used. Answers are
matched by `n`. When the other end is gone every waiting request fails with UnavailableError.
"""

import _socket
import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from crishim.engine import wire
from crishim.errors import DeadlineExceededError, UnavailableError


class Channel:
    """Owns its socket.

    Args:
        sock: a connected socket.
        name: for error texts, like "keeper of pod 3f2a".
        on_event: gets each message that answers no request, with the ownership of its fds.
        on_close: called once when the other end is gone.
    """

    def __init__(
        self,
        sock: _socket.socket,
        name: str,
        on_event: Callable[[wire.Message, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        self.name = name
        self._sock = sock
        self._on_event = on_event
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[wire.Message]] = {}
        self._next = 1
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self.open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def request(
        self,
        message: wire.Message,
        fds: Sequence[int] = (),
        timeout: float = 60.0,  # noqa: ASYNC109  a plain number is simplest here
        *,
        plan: bytes = b"",
    ) -> wire.Message:
        """Send a request and return its answer; `plan` as for `wire.encode`.

        Raises:
            UnavailableError: the other end is gone.
            DeadlineExceededError: no answer in `timeout` seconds.
        """
        if not self.open:
            raise UnavailableError(f"the {self.name} is gone")
        number = self._next
        self._next += 1
        future: asyncio.Future[wire.Message] = self._loop.create_future()
        self._waiting[number] = future
        deadline = self._loop.call_later(
            timeout, _expire, future, f"the {self.name} does not answer to {message.get('op')}"
        )
        try:
            self.send({"n": number, **message}, fds, plan)
            return await future
        finally:
            deadline.cancel()
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # the send that failed has said it: asyncio would report it as never retrieved

    def send(self, message: wire.Message, fds: Sequence[int] = (), plan: bytes = b"") -> None:
        """Send a message without waiting; copies of `fds` travel; `plan` as for `wire.encode`."""
        if not self.open:
            raise UnavailableError(f"the {self.name} is gone")
        data, memfd = wire.encode(message, plan)
        owned = [memfd] if memfd >= 0 else []
        if not self._queue:
            try:
                wire.send_packet(self._sock, data, [*fds, *owned])
            except BlockingIOError:
                pass
            except wire.ClosedError:
                wire.close_all(owned)
                self.close()
                raise UnavailableError(f"the {self.name} is gone") from None
            else:
                wire.close_all(owned)
                return
        self._queue.append((data, [os.dup(fd) for fd in fds] + owned))
        self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def close(self) -> None:
        """Close and fail what waits."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._queue:
            wire.close_all(fds)
        self._queue.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError(f"the {self.name} is gone"))
        self._on_close()

    def _on_writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                wire.send_packet(self._sock, data, fds)
            except BlockingIOError:
                return
            except wire.ClosedError:
                self.close()
                return
            wire.close_all(fds)
            self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _on_readable(self) -> None:
        while self.open:
            try:
                message, fds = wire.receive(self._sock)
            except BlockingIOError:
                return
            except (wire.ClosedError, OSError):
                self.close()
                return
            future = self._waiting.get(message.get("n", 0))
            if future is None:
                self._on_event(message, fds)
                continue
            wire.close_all(fds)
            if not future.done():
                future.set_result(message)


def _expire(future: "asyncio.Future[Any]", text: str) -> None:
    if not future.done():
        future.set_exception(DeadlineExceededError(text))
