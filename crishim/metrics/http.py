"""Just enough HTTP/1.1 (RFC 9112) for GET and HEAD without a body: bytes in, a request out; an answer in, bytes out.

Out of scope: sockets (`endpoint.py`). Anything that is not plainly a request of that kind is a `BadRequestError` with
the status to answer; the connection is closed after it, so that nothing is ever read out of step.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_HEAD = 8192
"""Bytes of request line and headers together."""
END = b"\r\n\r\n"

PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_LINE = re.compile(r"([A-Z]+) (\S+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/?#@,\[\]\\]*))(?::\d*)?", re.ASCII)
"""A Host header: an IPv6 address in brackets, or a name or IPv4 address; perhaps a port (RFC 3986, section 3.2.2)."""
TEXT = "text/plain; charset=utf-8"


class BadRequestError(Exception):
    """A request that is not answered as asked; `status` is the answer's code."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head; `path` without query; `keep` tells whether the connection stays.

    `host` is the name or address that the client believes to talk to, in lower case and without port and brackets; ""
    where it says none.
    """

    method: str
    path: str
    keep: bool
    host: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    status: int
    body: bytes = b""
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def parse(head: bytes) -> Request:
    """Return the request whose head (with the empty line) this is.

    Raises:
        BadRequestError: it is no GET or HEAD without body in HTTP/1.x.
    """
    first, *lines = head.removesuffix(END).decode("latin-1").lstrip("\r\n").split("\r\n")
    match = _LINE.fullmatch(first)
    if match is None:
        raise BadRequestError(400, "the request line is not HTTP")
    method, target, major, minor = match.groups()
    if major != "1":
        raise BadRequestError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequestError(400, "a header is not HTTP")
        name = found[1].lower()
        if name == "host" and name in headers:
            raise BadRequestError(400, "there is more than one Host header")
        headers[name] = found[2]
    if method not in {"GET", "HEAD"}:
        raise BadRequestError(405, "only GET and HEAD are answered here")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequestError(400, "a request must not have a body here")
    tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    keep = "keep-alive" in tokens if minor == "0" else "close" not in tokens
    return Request(method, target.partition("?")[0], keep, _host(headers.get("host", "")))


def _host(text: str) -> str:
    """Return the host of `HOST[:PORT]` or `[IPv6][:PORT]`; what is neither is answered with 400 (RFC 9112, 3.2)."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise BadRequestError(400, "the Host header is not HOST[:PORT]")
    return (match[1] or match[2].removesuffix(".")).lower()


def encode(answer: Answer, *, keep: bool, head_only: bool = False) -> bytes:
    """Return the bytes of an answer."""
    lines = [
        f"HTTP/1.1 {answer.status} {PHRASES[answer.status]}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        f"Connection: {'keep-alive' if keep else 'close'}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + END + (b"" if head_only else answer.body)


def refuse(error: BadRequestError) -> Answer:
    """Return the answer to a bad request."""
    headers = {"Allow": "GET, HEAD"} if error.status == 405 else {}
    return Answer(error.status, f"{error}\n".encode(), headers=headers)
