"""The HTTP endpoint on real sockets of the loopback, and its parser on bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from crishim.errors import InvalidArgumentError, KernelError
from crishim.metrics import endpoint as module
from crishim.metrics import http
from crishim.metrics.endpoint import Endpoint, split_address
from crishim.metrics.metrics import Metrics


@asynccontextmanager
async def serving(
    *, ready: tuple[bool, str] = (True, ""), timeout: float = 10, idle: float = 10, names: tuple[str, ...] = ()
) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(Metrics(), "127.0.0.1:0", lambda: ready, names=names, timeout=timeout, idle=idle)
    await endpoint.start()
    try:
        yield endpoint
    finally:
        await endpoint.close()


@asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*split_address(endpoint.address))
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = b"" if head_only else await reader.readexactly(int(headers["content-length"]))
    return int(first.split(" ")[1]), headers, body


async def ask(endpoint: Endpoint, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async with connected(endpoint) as (reader, writer):
        writer.write(request)
        answer = await read_answer(reader)
        if answer[1]["connection"] == "close":
            assert await asyncio.wait_for(reader.read(), 10) == b""
        return answer


async def until_end(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the other side closes, in whatever way it does."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def test_metrics_health_and_readiness() -> None:
    async with serving() as endpoint:
        status, headers, body = await ask(endpoint, get("/metrics"))
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert b"\ncrishim_build_info{" in body
        assert await ask(endpoint, get("/healthz?verbose")) == (
            200,
            {"content-type": http.TEXT, "content-length": "3", "connection": "keep-alive"},
            b"ok\n",
        )
        assert (await ask(endpoint, get("/readyz")))[::2] == (200, b"ok\n")
        assert (await ask(endpoint, get("/")))[0] == 404
    async with serving(ready=(False, "the network is not ready")) as endpoint:
        assert (await ask(endpoint, get("/readyz")))[::2] == (503, b"the network is not ready\n")


async def test_one_connection_serves_many_requests_byte_by_byte() -> None:
    async with serving() as endpoint, connected(endpoint) as (reader, writer):
        for _ in range(3):
            for byte in get("/healthz"):
                writer.write(bytes((byte,)))
                await writer.drain()
            assert (await read_answer(reader))[0] == 200
        writer.write(get("/healthz") + get("/readyz"))
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]


async def test_head_has_no_body() -> None:
    async with serving() as endpoint, connected(endpoint) as (reader, writer):
        writer.write(b"HEAD /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        status, headers, _ = await read_answer(reader, head_only=True)
        assert (status, headers["content-length"]) == (200, "3")
        assert await reader.read() == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 505),
        (b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nName : x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x00\xff\xfe\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
async def test_bad_requests_are_refused_and_the_server_goes_on(request_: bytes, status: int) -> None:
    async with serving() as endpoint:
        async with connected(endpoint) as (reader, writer):
            writer.write(request_)
            answer = await read_answer(reader)
            assert (answer[0], answer[1]["connection"]) == (status, "close")
            assert ("allow" in answer[1]) == (status == 405)
        assert (await ask(endpoint, get("/healthz")))[0] == 200


async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with serving(timeout=0.1) as endpoint, connected(endpoint) as (reader, writer):
        writer.write(b"GET /hea")
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_an_idle_connection_is_let_go() -> None:
    async with serving(idle=0.1) as endpoint, connected(endpoint) as (reader, writer):
        writer.write(get("/healthz"))
        assert (await read_answer(reader))[0] == 200
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_client_that_does_not_read_is_let_go() -> None:
    async with serving(timeout=0.2) as endpoint:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(split_address(endpoint.address))
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            with pytest.raises((ConnectionError, TimeoutError)):
                await asyncio.wait_for(loop.sock_sendall(slow, get("/metrics") * 500_000), 20)
            assert (await ask(endpoint, get("/healthz")))[0] == 200


@pytest.mark.parametrize("begun", [b"", b"GET /heal", get("/healthz")])
async def test_who_waits_longest_makes_room_for_who_comes(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    async with serving() as endpoint, connected(endpoint) as first, connected(endpoint) as second:
        for reader, writer in (first, second):
            writer.write(begun)
            if begun.endswith(b"\r\n\r\n"):
                assert (await read_answer(reader))[0] == 200
        async with connected(endpoint) as (reader, writer):
            writer.write(get("/healthz"))
            assert (await read_answer(reader))[0] == 200
            assert await until_end(first[0]) == b""
            second[1].write(get("/healthz").removeprefix(begun) or begun)
            assert (await read_answer(second[0]))[0] == 200


async def test_who_takes_no_answer_makes_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 1)
    async with serving() as endpoint:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(split_address(endpoint.address))
            slow.setblocking(False)
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(slow, get("/metrics") * 500_000))
            while not endpoint._open or endpoint._waiting:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert (await ask(endpoint, get("/healthz")))[0] == 200
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(sending, 20)


async def test_a_flood_of_silent_connections_keeps_nobody_out() -> None:
    async with serving() as endpoint, AsyncExitStack() as stack:
        for _ in range(3 * module.MAX_CONNECTIONS):
            await stack.enter_async_context(connected(endpoint))
        assert (await ask(endpoint, get("/healthz")))[0] == 200
        assert len(endpoint._open) <= module.MAX_CONNECTIONS


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:9539", 200),
        ("a.localhost:1", 200),
        ("127.0.0.1:9539", 200),
        ("127.9.9.9", 200),
        ("[::1]:9539", 200),
        ("node1.example:9539", 200),
        ("", 200),
        ("evil.test", 421),
        ("evil.test:9539", 421),
        ("localhost.evil.test", 421),
        ("127.0.0.1.evil.test", 421),
        ("192.0.2.7", 421),
        ("[2001:db8::1]:9539", 421),
        *((text, 400) for text in ("[", "[]", "[::1]x", "[127.0.0.1]evil.test", "127.0.0.1:80:evil", "localhost/x")),
    ],
)
async def test_only_who_means_us_is_answered(host: str, status: int) -> None:
    async with serving(names=("Node1.example",)) as endpoint:
        answer = await ask(endpoint, f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer[0] == status
        assert (b"crishim_build_info" in answer[2]) == (status == 200)


class Reached(asyncio.StreamWriter):
    """A connection that came in by an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._address, 9539) if name == "sockname" else default

    def __del__(self) -> None:
        """Have nothing to close."""


@pytest.mark.parametrize(
    ("address", "host", "ours"),
    [
        ("198.51.100.7", "198.51.100.7", True),
        ("198.51.100.7", "198.51.100.8", False),
        ("2001:db8::7", "2001:db8:0::7", True),
        ("fe80::7%eth0", "fe80::7", True),
        ("2001:db8::7", "2001:db8::8", False),
    ],
)
def test_the_address_that_was_reached_is_ours(address: str, host: str, ours: bool) -> None:
    endpoint = Endpoint(Metrics(), "0.0.0.0:9539", lambda: (True, ""))
    assert endpoint._is_ours(host, Reached(address)) is ours


async def test_close_ends_open_connections() -> None:
    async with serving() as endpoint, connected(endpoint) as (reader, writer):
        writer.write(get("/healthz"))
        assert (await read_answer(reader))[0] == 200
        await endpoint.close()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        await endpoint.close()
        assert endpoint.address == ""


async def test_an_empty_address_is_off() -> None:
    endpoint = Endpoint(Metrics(), "", lambda: (True, ""))
    await endpoint.start()
    assert endpoint.address == ""
    await endpoint.close()


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    async with serving() as endpoint:
        second = Endpoint(Metrics(), endpoint.address, lambda: (True, ""))
        with pytest.raises(KernelError, match=f"listen on {endpoint.address} for metrics"):
            await second.start()


@pytest.mark.parametrize(
    ("text", "parts"), [("127.0.0.1:9539", ("127.0.0.1", 9539)), ("[::1]:0", ("::1", 0)), ("host:1", ("host", 1))]
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize("text", ["", "9539", ":9539", "::1:9539", "host:", "host:x", "host:70000", "host:٣"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="metrics_listen: must be HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"\r\nGET / HTTP/1.1\r\n\r\n", True),
    ],
)
def test_whether_the_connection_stays(head: bytes, keep: bool) -> None:
    assert http.parse(head) == http.Request("GET", "/", keep)
