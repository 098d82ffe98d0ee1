"""HTTP to registries over urllib3, which is imported with the first request.

Adds what registries need and urllib3 leaves open: certificates by endpoint, proxies from the environment, redirects
that lose what belongs to the origin only (Authorization, configured headers) and never leave http, and errors that
say whether trying again could help. Out of scope: what is asked, authentication, retries.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urljoin, urlsplit

from crishim.errors import FailedPreconditionError, UnavailableError
from crishim.images.registry.hosts import Tls

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_REDIRECTS = 10
_AUTHORITY = re.compile(r"[a-z]+://[\w.~%!$&'()*+,;=:@\[\]-]+(?:[/?#]|$)", re.ASCII | re.IGNORECASE)  # RFC 3986
_PORTS = {"http": 80, "https": 443}
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_REDIRECTED_WRITES = frozenset({307, 308})  # after the others a POST would become a GET (RFC 9110 section 15.4)
USER_AGENT = "crishim"


class Stream(Protocol):
    """A body that is read while it is sent."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; `b""` at the end."""


Body = bytes | Callable[[], Stream]
"""A request's body, or a function that opens it: a redirect or a challenge makes it go over the wire again."""


class ConnectError(UnavailableError):
    """No connection: refused, no such host, no route, or no answer in time."""


class TlsError(UnavailableError):
    """The server's certificate, or ours, is not accepted; trying again will not help."""


class BrokenError(UnavailableError):
    """The connection broke, or stood still for too long, in the middle."""


class Cancel:
    """Tells blocking work in a thread to end; a read that waits for a silent server is woken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: dict[int, Callable[[], object]] = {}
        self._set = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether the work should end."""
        return self._set.is_set()

    def set(self) -> None:
        """Ask the work to end."""
        self._set.set()
        with self._lock:
            wakers = list(self._wake.values())
        for wake in wakers:
            wake()

    def pause(self, seconds: float) -> None:
        """Sleep, but not past the cancellation."""
        self._set.wait(seconds)

    def watch(self, owner: object, wake: Callable[[], object]) -> None:
        """Have `wake` called at a cancellation, until `unwatch(owner)`."""
        with self._lock:
            self._wake[id(owner)] = wake
        if self.cancelled:
            wake()

    def unwatch(self, owner: object) -> None:
        """Forget what `watch` was told."""
        with self._lock:
            self._wake.pop(id(owner), None)


class Response:
    """An answer whose body is read in pieces; `authenticated` tells whether credentials had been sent for it."""

    def __init__(self, raw: "BaseHTTPResponse", url: str, cancel: Cancel) -> None:
        self._raw = raw
        self._cancel = cancel
        self.url = url
        self.authenticated = False
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        cancel.watch(self, self._wake)

    @property
    def host(self) -> str:
        """Who answered, after redirects."""
        return urlsplit(self.url).netloc

    def challenges(self) -> list[str]:
        """Return the WWW-Authenticate headers."""
        return list(self._raw.headers.getlist("WWW-Authenticate"))

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, less only at the end."""
        with _errors(self.url):
            return self._raw.read(size, decode_content=False)

    def body(self, limit: int) -> bytes:
        """Return the whole body, or its first `limit` + 1 bytes if it is longer; the connection is free afterwards."""
        try:
            data = self.read(limit + 1)
            if len(data) <= limit:
                self.read(1)
            return data
        finally:
            self.close()

    def close(self) -> None:
        """Free the connection; a body that was not read to its end closes it."""
        self._cancel.unwatch(self)
        if self._raw.closed:
            self._raw.release_conn()
        else:
            self._raw.close()

    def _wake(self) -> None:
        try:
            self._raw.shutdown()
        except (OSError, ValueError, RuntimeError):
            return  # read to its end, or closed already: nobody waits on it


class _errors:  # noqa: N801  used like a function
    """Turn urllib3's exceptions into ours."""

    def __init__(self, url: str, *, sending: bool = False) -> None:
        self._host = urlsplit(url).netloc
        self._sending = sending

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from http.client import HTTPException

        from urllib3 import exceptions

        if isinstance(error, exceptions.SSLError):
            hint = "set `ca`, `client` or `skip_verify` in the host's hosts.toml"
            raise TlsError(f"{self._host}: TLS: {_reason(error)}; {hint}") from None
        if isinstance(error, exceptions.NameResolutionError):
            raise ConnectError(f"{self._host}: the host name cannot be resolved") from None
        if isinstance(error, exceptions.NewConnectionError | exceptions.ConnectTimeoutError | exceptions.ProxyError):
            raise ConnectError(f"{self._host}: no connection: {_reason(error)}") from None
        if (
            self._sending
            and isinstance(error, ValueError)
            and not isinstance(error, exceptions.ProtocolError | OSError)
        ):
            raise FailedPreconditionError(f"{self._host}: an address or a header cannot be sent like this") from error
        if isinstance(error, exceptions.HTTPError | HTTPException | OSError | ValueError):
            raise BrokenError(f"{self._host}: the connection broke: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return the innermost cause that has words for a person: urllib3's and Python's own names say nothing to one."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        # urllib3 hands some causes over as an argument
        cause = cause.__cause__ or next((a for a in cause.args if isinstance(a, BaseException)), None)
    return next(filter(None, map(_words, reversed(causes))), "for no reason that it says")


def _words(error: BaseException) -> str:
    """Return what an exception of urllib3, http.client, ssl or the system says; empty for nothing."""
    import ssl
    from http import client

    from urllib3 import exceptions

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "").replace("_", " ").lower()
    if isinstance(error, client.IncompleteRead | exceptions.IncompleteRead):
        return f"the answer ends {error.expected} bytes too early" if error.expected else "the answer ends too early"
    if isinstance(error, client.RemoteDisconnected):
        return "it was closed without an answer"
    if isinstance(error, client.HTTPException):
        return "the answer is no HTTP"
    if isinstance(error, exceptions.ReadTimeoutError):
        return "nothing came for too long"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror
    if isinstance(error, exceptions.ConnectTimeoutError):
        return "no answer in time"
    return ""


class Transport:
    """Connections for one pull.

    Args:
        stall_seconds: longest time without a byte.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall = stall_seconds
        self._pools: dict[tuple[Tls, str], PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all idle connections; one that is in use closes when it is let go."""
        with self._lock:
            managers = list(self._pools.values())
            self._pools.clear()
        for manager in managers:
            for key in manager.pools.keys():  # noqa: SIM118  the container cannot be iterated
                # `clear` alone would leave the closing to the garbage collector.
                manager.pools[key].close()
            manager.clear()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        private: Mapping[str, str],
        tls: Tls,
        dial_seconds: float,
        cancel: Cancel,
        body: Body | None = None,
        secret: bool = False,
    ) -> Response:
        """Send a request and follow redirects; the answer may have any other status.

        Args:
            method: HTTP method.
            url: absolute, http or https.
            headers: sent to whichever host answers in the end.
            private: sent to the first origin only.
            tls: certificates for the first origin.
            dial_seconds: time for the connection.
            cancel: ends the work.
            body: what to send; a stream needs a Content-Length header.
            secret: the body is for the first origin only, too.

        Raises:
            ConnectError, TlsError, BrokenError: no answer.
            FailedPreconditionError: a redirect that leads nowhere we go, or where the body must not go.
        """
        from urllib3 import Timeout

        origin = _origin(url)
        timeout = Timeout(connect=dial_seconds, read=self._stall)
        followed = _REDIRECTED if method in {"GET", "HEAD"} else _REDIRECTED_WRITES
        for _ in range(_REDIRECTS + 1):
            same = _origin(url) == origin
            sent = {"User-Agent": USER_AGENT, **headers, **(private if same else {})}
            pool = self._pool(tls if same else Tls(), url)
            with _errors(url, sending=True):
                raw = pool.request(
                    method,
                    url,
                    body=cast("IO[bytes] | bytes | None", body() if callable(body) else body),
                    headers=sent,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=timeout,
                )
            response = Response(raw, url, cancel)
            location = response.headers.get("Location")
            if response.status not in followed or not location:
                return response
            response.close()
            url = _redirected(url, location)
            if secret and _origin(url) != origin:
                host, other = urlsplit(response.url).netloc, urlsplit(url).netloc
                raise FailedPreconditionError(f"{host}: redirects to {other}, which must not get the credentials")
        raise FailedPreconditionError(f"{urlsplit(url).netloc}: more than {_REDIRECTS} redirects")

    def _pool(self, tls: Tls, url: str) -> "PoolManager":
        proxy = proxy_for(url, os.environ)
        with self._lock:
            pool = self._pools.get((tls, proxy))
            if pool is None:
                pool = self._pools[tls, proxy] = _make_pool(tls, proxy)
            return pool


def _make_pool(tls: Tls, proxy: str) -> "PoolManager":
    from urllib3 import PoolManager, ProxyManager, disable_warnings, exceptions, make_headers

    if tls.skip_verify:
        disable_warnings(exceptions.InsecureRequestWarning)  # hosts.toml asks for it; a warning each time tells nothing
    arguments: dict[str, Any] = {"num_pools": 8, "maxsize": 8}
    if tls != Tls():
        arguments["ssl_context"] = _context(tls)
    if not proxy:
        return PoolManager(**arguments)
    parts = urlsplit(proxy)
    headers = make_headers(proxy_basic_auth=f"{parts.username}:{parts.password or ''}") if parts.username else None
    return ProxyManager(proxy, proxy_headers=headers, **arguments)


def _context(tls: Tls) -> object:
    import ssl

    context = ssl.create_default_context()
    try:
        for path in tls.ca:
            context.load_verify_locations(path)
        for certificate, key in tls.client:
            context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        files = [*tls.ca, *(name for pair in tls.client for name in pair if name)]
        raise FailedPreconditionError(f"certificates {', '.join(files)}: {error.strerror or error}") from None
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def is_http(url: str) -> bool:
    r"""Tell whether a registry's URL is one that can be asked.

    All parsers have to see one host in it: urlsplit ends an authority at a slash, urllib3 at a backslash too, and
    `http://elsewhere\@registry/` would take what is the registry's alone to elsewhere.
    """
    if not _AUTHORITY.match(url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is none
        return False


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    if not is_http(target):
        raise FailedPreconditionError(f"{urlsplit(url).netloc}: redirects to {location[:100]!r}, no http or https URL")
    return target


def proxy_for(url: str, environment: Mapping[str, str]) -> str:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY say for a URL; empty for none.

    NO_PROXY holds host names (with their subdomains), addresses, networks, or `*`; loopback hosts never take a proxy
    (like Go's httpproxy, which other runtimes use).
    """
    parts = urlsplit(url)
    name = parts.scheme.upper() + "_PROXY"
    proxy = environment.get(name) or environment.get(name.lower()) or ""
    if not proxy:
        return ""
    from crishim.images.registry.hosts import is_loopback

    host = (parts.hostname or "").lower()
    if is_loopback(parts.netloc) or _excluded(host, environment.get("NO_PROXY") or environment.get("no_proxy") or ""):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _excluded(host: str, rules: str) -> bool:
    import ipaddress

    for rule in (r.strip().lower() for r in rules.split(",")):
        if rule == "*":
            return True
        if not rule:
            continue
        name = rule.rpartition(":")[0] if rule.count(":") == 1 else rule
        name = name.removeprefix("*").removeprefix(".")
        if host == name or host.endswith(f".{name}"):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False
