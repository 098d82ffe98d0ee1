"""The write side of a repository: which blobs it has, upload sessions, manifests (OCI distribution-spec, "Push").

Blocking; meant for threads. A push goes to one endpoint, the first of hosts.toml that has the capability `push`: trying
another one after a failure would leave an image where nobody looks for it. Out of scope: what a session does
(`upload`), what manifests mean. Invariant: nothing is sent to another host than this endpoint but what its own upload
locations ask for, and credentials never.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from crishim.errors import AbortedError, CrishimError, DataLossError, FailedPreconditionError
from crishim.images.model import Credentials
from crishim.images.reference import Reference
from crishim.images.registry.auth import Login
from crishim.images.registry.client import summary
from crishim.images.registry.exchange import Authorizers, Exchange, Request, checked
from crishim.images.registry.hosts import PUSH, Endpoint, load
from crishim.images.registry.transport import Body, BrokenError, Cancel, Response, is_http
from crishim.images.settings import ImageSettings
from crishim.words import number

_CREATED = frozenset({201})
_PIECE_ANSWERS = frozenset({201, 202, 204})
_OUT_OF_STEP = frozenset({404, 416})
"""The upload is unknown, or at another offset than we think."""
_MOUNT_ANSWERS = frozenset({201, 202})
_SESSION_ANSWERS = frozenset({202})
_STATUS_ANSWERS = frozenset({204, 202, 200, 404})
_HEAD_ANSWERS = frozenset({200, 404})
_LONGEST_CHUNK = 1 << 40


@dataclass(slots=True)
class Session:
    """An upload under way: where the next request goes, how much the registry has, its smallest piece in bytes."""

    location: str
    offset: int = 0
    minimum: int = 0


class Target:
    """A repository that is pushed to.

    Args:
        reference: names host and repository.
        credentials: the request's, or None.
        settings: time-outs and attempts.
        authorizers: shared by all pulls and pushes.

    Raises:
        FailedPreconditionError: the host's hosts.toml is wrong, or lets nobody push.
        InvalidArgumentError: the credentials cannot be read.
    """

    def __init__(
        self, reference: Reference, credentials: Credentials | None, settings: ImageSettings, authorizers: Authorizers
    ) -> None:
        self.name = reference.repository
        self.settings = settings
        self._path = reference.path
        able = [e for e in load(reference.host, settings.certs_d) if PUSH in e.capabilities]
        if not able:
            raise FailedPreconditionError(f"{self.name}: hosts.toml names no host with the capability push")
        self._endpoint = able[0]
        scope = f"repository:{reference.path}:pull,push"
        self._exchange = Exchange(settings, authorizers, Login(credentials, reference.host), scope, (scope,))

    def close(self) -> None:
        """Close idle connections."""
        self._exchange.close()

    def has(self, digest: str, cancel: Cancel, attempts: int) -> bool:
        """Tell whether the registry has a blob in this repository."""
        request = self._request("HEAD", f"blobs/{digest}")
        response = self._exchange.retried(request, cancel, attempts, _HEAD_ANSWERS)
        response.close()
        return response.status == 200

    def begin(self, cancel: Cancel, attempts: int) -> Session:
        """Begin an upload."""
        request = self._request("POST", "blobs/uploads/")
        return self._session(self._exchange.retried(request, cancel, attempts, _SESSION_ANSWERS))

    def mount(self, digest: str, source: str, cancel: Cancel) -> Session | None:
        """Take a blob over from another repository (a path) of the host; return None, or the upload it began instead.

        Raises:
            CrishimError: the registry does neither; the caller begins an upload.
        """
        request = self._request("POST", "blobs/uploads/")
        separator = "&" if "?" in request.url else "?"
        url = f"{request.url}{separator}mount={quote(digest, safe='')}&from={quote(source, safe='')}"
        authorizer = self._exchange.authorizer(self._endpoint, f"repository:{source}:pull")
        mounting = Request(self._endpoint, "POST", url, request.headers, authorizer)
        response = self._exchange.retried(mounting, cancel, self.settings.attempts, _MOUNT_ANSWERS)
        if response.status == 202:
            return self._session(response)
        response.close()
        return None

    def abandon(self, session: Session, cancel: Cancel) -> None:
        """Tell the registry that an upload will not go on; it is no matter if it does not hear it."""
        with suppress(CrishimError):
            self._exchange.retried(self._at(session.location, "DELETE", {}, None), cancel, 1, {204, 202}).close()

    def look(self, session: Session, cancel: Cancel) -> bool:
        """Ask how much of an upload has arrived and note it; False if the registry does not know it any more."""
        request = self._at(session.location, "GET", {}, None)
        response = checked(self._exchange.authorized(request, cancel), _STATUS_ANSWERS)
        response.close()
        if response.status == 404:
            return False
        session.offset = _arrived(response.headers, 0)
        session.location = self._next(response, session.location)
        return True

    def patch(self, session: Session, body: Body, length: int, cancel: Cancel) -> None:
        """Send a piece of `length` bytes from the session's offset on, once, and move the session on."""
        first = session.offset
        headers = _body_headers(length) | {"Content-Range": f"{first}-{first + length - 1}"}
        request = self._at(session.location, "PATCH", headers, body)
        response = self._once(request, cancel, _PIECE_ANSWERS)
        session.offset = _arrived(response.headers, first + length)
        session.location = self._next(response, session.location)

    def commit(self, session: Session, digest: str, body: Body, length: int, cancel: Cancel) -> None:
        """Send the last `length` bytes of a blob (0, or all of it) and have the registry check it, once."""
        url = f"{session.location}{'&' if '?' in session.location else '?'}digest={quote(digest, safe='')}"
        request = self._at(url, "PUT", _body_headers(length), body)
        response = self._once(request, cancel, _CREATED)
        self._compare(response, digest)

    def put_manifest(self, target: str, data: bytes, media_type: str, digest: str, cancel: Cancel) -> None:
        """Store a manifest under a tag or under its digest.

        Raises:
            DataLossError: the registry has made something else of it.
        """
        with self.telling(f"manifest {target}", cancel):
            request = self._request("PUT", f"manifests/{target}", {"Content-Type": media_type}, data)
            response = self._exchange.retried(request, cancel, self.settings.attempts, _CREATED)
            response.close()
            self._compare(response, digest)

    @contextmanager
    def telling(self, what: str, cancel: Cancel) -> Iterator[None]:
        """Have errors say what was pushed, and a cancellation be one."""
        try:
            yield
        except CrishimError as error:
            if cancel.cancelled:
                raise AbortedError(f"{self.name}: {what}: the push was cancelled") from None
            raise summary([error], f"{self.name}: {what}") from None

    # --- inside --------------------------------------------------------------------------------------------------

    def _request(
        self, method: str, resource: str, headers: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Request:
        sent = dict(headers or {})
        if method == "POST":
            sent["Content-Length"] = "0"
        return self._exchange.request(self._endpoint, method, f"{self._path}/{resource}", sent, body)

    def _once(self, request: Request, cancel: Cancel, accepted: Container[int]) -> Response:
        """Send a piece, once: after a failure the registry must first say how much of it has arrived."""
        response = self._exchange.authorized(request, cancel)
        if response.status in _OUT_OF_STEP:
            response.close()
            raise BrokenError(f"{own_host(self._endpoint)}: HTTP {response.status} for a piece of an upload")
        checked(response, accepted).close()
        return response

    def _at(self, url: str, method: str, headers: Mapping[str, str], body: Body | None) -> Request:
        """Return a request to an upload's location; another host gets neither credentials nor our headers."""
        if _origin(url) == _origin(self._endpoint.base):
            return Request(self._endpoint, method, url, headers, self._exchange.authorizer(self._endpoint), body)
        return Request(Endpoint(url), method, url, headers, None, body)

    def _session(self, response: Response) -> Session:
        response.close()
        minimum = number(response.headers.get("OCI-Chunk-Min-Length", "")) or 0
        return Session(self._next(response, ""), minimum=min(minimum, _LONGEST_CHUNK))

    def _next(self, response: Response, before: str) -> str:
        """Return the location for the next request; behind a TLS proxy registries name themselves with http."""
        location = response.headers.get("Location", "")
        if not location and before:
            return before
        try:
            url = urljoin(response.url, location)
        except ValueError:
            url = ""
        if not location or not is_http(url):
            raise FailedPreconditionError(
                f"{own_host(self._endpoint)}: answers with the upload location {location[:100]!r}"
            )
        parts, own = urlsplit(url), urlsplit(self._endpoint.base)
        if own.scheme == "https" and parts.scheme == "http" and parts.hostname == own.hostname:
            url = own.scheme + url.removeprefix("http")
        return url

    def _compare(self, response: Response, digest: str) -> None:
        stored = response.headers.get("Docker-Content-Digest", digest)
        if stored != digest:
            raise DataLossError(f"{own_host(self._endpoint)}: it has stored {stored[:100]} in the place of {digest}")


def own_host(endpoint: Endpoint) -> str:
    """Return the host of an endpoint, for errors."""
    return urlsplit(endpoint.base).netloc


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _body_headers(length: int) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(length)}


def _arrived(headers: Mapping[str, str], otherwise: int) -> int:
    """Return how many bytes a Range header says are there.

    `0-0` stands for none: registries write it for an empty upload, and a piece never has one byte only.
    """
    unit, _, span = headers.get("Range", "").rpartition("=")
    first, dash, last = span.partition("-")
    end = number(last)
    if unit not in {"", "bytes"} or not dash or first != "0" or end is None:
        return otherwise
    return end + 1 if end else 0
