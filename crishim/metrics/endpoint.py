"""The HTTP endpoint of `/metrics`, `/healthz` and `/readyz` on the daemon's event loop.

Clients are not trusted with the daemon's time: each connection has a deadline for its request and for taking the
answer, and their number is limited; where it is reached, a new one takes the place of the one that has been waiting
longest, so that nobody is kept out by who says nothing. Nor are they trusted to be here on purpose: a web page of
elsewhere may let its own name lead to our address (DNS rebinding), so a request has to name us as we are known.
`close` ends all connections. An empty listen address means no endpoint.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Iterable

import structlog

from crishim.errors import InvalidArgumentError, KernelError
from crishim.metrics import http
from crishim.metrics.metrics import Metrics

TIMEOUT = 10.0
"""Seconds for a request to arrive and for an answer to be taken."""
IDLE = 120.0
"""Seconds that a kept connection may wait for its next request; Prometheus scrapes every 15 to 60."""
MAX_CONNECTIONS = 64

Ready = Callable[[], tuple[bool, str]]

log: structlog.stdlib.BoundLogger = structlog.get_logger("crishim.metrics")


class Endpoint:
    """The endpoint of one daemon.

    Args:
        metrics: what `/metrics` shows.
        listen: `HOST:PORT`, `[IPv6]:PORT`; port 0 takes any free one; "" is off.
        ready: tells whether the daemon serves, and why not.
        names: what clients may call us, besides `listen`, the address that they reached, and names of the loopback.
    """

    def __init__(
        self,
        metrics: Metrics,
        listen: str,
        ready: Ready,
        *,
        names: Iterable[str] = (),
        timeout: float = TIMEOUT,
        idle: float = IDLE,
    ) -> None:
        self._metrics = metrics
        self._listen = listen
        self._ready = ready
        self._timeout = timeout
        self._idle = idle
        self._server: asyncio.Server | None = None
        self._names = {name.lower() for name in names} | {"localhost"}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first
        self._waiting: dict[asyncio.Task[None], None] = {}  # for a request; who waits longest is first

    @property
    def address(self) -> str:
        """Where it listens, as `HOST:PORT`; "" when off."""
        if self._server is None:
            return ""
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            InvalidArgumentError: the address has not the form HOST:PORT.
            KernelError: it cannot be bound.
        """
        if not self._listen:
            return
        host, port = split_address(self._listen)
        self._names.add(host.lower())
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=http.MAX_HEAD)
        except OSError as error:
            raise KernelError(f"listen on {self._listen} for metrics", error.errno or 0) from error
        log.info("metrics", address=self.address)

    async def close(self) -> None:
        """Stop listening and end all connections; repeatable."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        if len(self._open) >= MAX_CONNECTIONS:
            self._drop(next(iter(self._waiting or self._open)))
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="metrics connection")
        self._tasks.add(task)
        self._open[task] = writer
        self._waiting[task] = None
        task.add_done_callback(self._forget)

    def _drop(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).transport.abort()
        self._waiting.pop(task, None)
        task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._open.pop(task, None)
        self._waiting.pop(task, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            wait = self._timeout
            while await self._exchange(reader, writer, wait):
                wait = self._idle
        except (OSError, TimeoutError):
            pass  # the client went away or was too slow; neither is worth a line
        except Exception:
            log.exception("metrics request failed")
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> bool:
        """Answer one request; tell whether the connection stays."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = None
        try:
            async with asyncio.timeout(wait):
                head = await reader.readuntil(http.END)
            self._waiting.pop(task, None)
        except asyncio.IncompleteReadError:
            return False
        except asyncio.LimitOverrunError:
            refused = http.BadRequestError(431, f"the request's head is longer than {http.MAX_HEAD} bytes")
            return await self._send(writer, http.encode(http.refuse(refused), keep=False), keep=False)
        try:
            request = http.parse(head)
        except http.BadRequestError as error:
            return await self._send(writer, http.encode(http.refuse(error), keep=False), keep=False)
        if not self._is_ours(request.host, writer):
            refused = http.BadRequestError(421, f"{request.host!r} is not one of our names; metrics_hosts adds more")
            return await self._send(writer, http.encode(http.refuse(refused), keep=False), keep=False)
        answer = await self._answer(request.path)
        data = http.encode(answer, keep=request.keep, head_only=request.method == "HEAD")
        return await self._send(writer, data, keep=request.keep)

    def _is_ours(self, host: str, writer: asyncio.StreamWriter) -> bool:
        """Tell whether a client means us; one that names nobody is no browser."""
        if not host or host in self._names or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        reached = writer.get_extra_info("sockname")[0].partition("%")[0]  # a link-local one names its link
        return address.is_loopback or address == ipaddress.ip_address(reached)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, *, keep: bool) -> bool:
        """Write and wait until the client has taken it, so that nothing piles up here."""
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(data)
        async with asyncio.timeout(self._timeout):
            await writer.drain()
        return keep

    async def _answer(self, path: str) -> http.Answer:
        if path == "/metrics":
            return http.Answer(200, await self._metrics.render(), self._metrics.content_type)
        if path == "/healthz":
            return http.Answer(200, b"ok\n")
        if path == "/readyz":
            ready, reason = self._ready()
            return http.Answer(200 if ready else 503, f"{reason or ('ok' if ready else 'not ready')}\n".encode())
        return http.Answer(404, b"only /metrics, /healthz and /readyz are here\n")


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[IPv6]:PORT`.

    Raises:
        InvalidArgumentError: it has another form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidArgumentError("metrics_listen", f"must be HOST:PORT or [IPv6]:PORT, is {text!r}")
    return host, int(port)
