"""One repository of one registry, reached through its mirrors: manifests and blobs (OCI distribution-spec, "Pull").

Blocking; meant for threads. Each endpoint is tried in order; what went wrong at each stands in the error. 429 and
5xx are tried again with a growing pause or the server's Retry-After, a 401 is answered once with fresh credentials.
Out of scope: what manifests mean, storing blobs. Invariant: no body is believed here; callers check digests.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

from crishim.errors import (
    AbortedError,
    CrishimError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.manifest import ACCEPT, DOCUMENT_LIMIT
from crishim.images.model import Credentials
from crishim.images.reference import Reference, is_digest
from crishim.images.registry.auth import Authorizer, Login
from crishim.images.registry.hosts import PULL, RESOLVE, Endpoint, Tls, load
from crishim.images.registry.transport import BrokenError, Cancel, ConnectError, Response, Transport
from crishim.images.settings import ImageSettings

T = TypeVar("T")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECT_ATTEMPTS = 3
_MIRROR_ATTEMPTS = 2
_AUTHORIZERS = 256
UNAVAILABLE = "RegistryUnavailable"
"""kubelet looks for messages that begin with this word (contract.md)."""


class Authorizers:
    """The authorizers of the daemon's lifetime, so that a second pull needs no new token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Authorizer] = {}

    def get(self, origin: str, path: str, login: Login) -> Authorizer:
        """Return the one authorizer of an origin, a repository and a login."""
        key = (origin, path, login.key)
        with self._lock:
            found = self._known.pop(key, None) or Authorizer(login, f"repository:{path}:pull")
            self._known[key] = found
            while len(self._known) > _AUTHORIZERS:
                del self._known[next(iter(self._known))]
            return found


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of an endpoint; without an authorizer no credentials go along."""

    endpoint: Endpoint
    method: str
    url: str
    headers: Mapping[str, str]
    authorizer: Authorizer | None = None


class Repository:
    """A repository and the endpoints that have it.

    Args:
        reference: names host and repository.
        credentials: the request's, or None.
        settings: time-outs and attempts.
        authorizers: shared by all pulls.

    Raises:
        FailedPreconditionError: the host's hosts.toml is wrong.
        InvalidArgumentError: the credentials cannot be read.
    """

    def __init__(
        self, reference: Reference, credentials: Credentials | None, settings: ImageSettings, authorizers: Authorizers
    ) -> None:
        self.name = reference.repository
        self._path = reference.path
        self._login = Login(credentials, reference.host)
        self._settings = settings
        self._authorizers = authorizers
        self._endpoints = load(reference.host, settings.certs_d)
        self._transport = Transport(settings.stall_seconds)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _named(self, target: str) -> str:
        """Return the reference as a person writes it: `@` before a digest, `:` before a tag."""
        return f"{self.name}{'@' if is_digest(target) else ':'}{target}"

    def resolve(self, target: str, cancel: Cancel) -> str:
        """Return the digest of a tag's (or digest's) manifest by one HEAD, or "" if the registry does not say."""

        def ask(endpoint: Endpoint, attempts: int) -> str:
            response = self._send(endpoint, "HEAD", f"manifests/{target}", {"Accept": ACCEPT}, cancel, attempts)
            response.close()
            digest = response.headers.get("Docker-Content-Digest", "")
            return digest if is_digest(digest) else ""

        return self._each(self._able(target), ask, self._named(target), cancel)

    def manifest(self, target: str, cancel: Cancel) -> tuple[bytes, str, str]:
        """Return a manifest's bytes, media type and digest; the digest is the one asked for, or computed.

        Raises:
            DataLossError: the bytes are not those of the digest, or too many.
        """

        def ask(endpoint: Endpoint, attempts: int) -> tuple[bytes, str, str]:
            response = self._send(endpoint, "GET", f"manifests/{target}", {"Accept": ACCEPT}, cancel, attempts)
            data = response.body(DOCUMENT_LIMIT)
            what = f"{self.name}: manifest {target}"
            if len(data) > DOCUMENT_LIMIT:
                raise DataLossError(f"{what} is larger than the limit of {DOCUMENT_LIMIT} bytes")
            stated = target if is_digest(target) else response.headers.get("Docker-Content-Digest", "")
            algorithm = stated.partition(":")[0] if is_digest(stated) else "sha256"
            digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            if is_digest(stated) and digest != stated:
                raise DataLossError(f"{what} has the digest {digest}, not {stated}")
            return data, response.headers.get("Content-Type", ""), digest

        return self._each(self._able(target), ask, self._named(target), cancel)

    def blob(self, digest: str, offset: int, urls: Sequence[str], cancel: Cancel) -> tuple[Response, int]:
        """Open a blob from byte `offset` on; return the answer and where it really starts (0 if ranges are unknown).

        Args:
            digest: the blob.
            offset: how much of it is already here.
            urls: other places of a nondistributable layer, tried last.
            cancel: ends the work.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}

        def ask(endpoint: Endpoint, attempts: int) -> tuple[Response, int]:
            response = self._send(endpoint, "GET", f"blobs/{digest}", headers, cancel, attempts)
            return response, _start(response, offset)

        endpoints = [e for e in self._endpoints if PULL in e.capabilities]
        try:
            return self._each(endpoints, ask, f"{self.name}: blob {digest}", cancel)
        except NotFoundError:
            for url in urls:
                foreign = Endpoint(url)
                response = self._retried(_Request(foreign, "GET", url, headers), cancel, 1)
                return response, _start(response, offset)
            raise

    # --- endpoints -----------------------------------------------------------------------------------------------

    def _able(self, target: str) -> list[Endpoint]:
        wanted = PULL if is_digest(target) else RESOLVE
        return [endpoint for endpoint in self._endpoints if wanted in endpoint.capabilities]

    def _each(self, endpoints: Sequence[Endpoint], ask: Callable[[Endpoint, int], T], what: str, cancel: Cancel) -> T:
        """Ask the endpoints in turn; the registry itself, the last, is tried hardest and decides the kind of error."""
        failures: list[CrishimError] = []
        for endpoint in endpoints:
            last = endpoint is endpoints[-1]
            try:
                return ask(endpoint, self._settings.attempts if last else _MIRROR_ATTEMPTS)
            except CrishimError as error:
                if cancel.cancelled:
                    raise AbortedError(f"{what}: the pull was cancelled") from None
                failures.append(error)
        if not failures:
            raise FailedPreconditionError(f"{what}: hosts.toml names no host that may be asked for it")
        raise _summary(failures, what)

    def _send(
        self, endpoint: Endpoint, method: str, resource: str, headers: Mapping[str, str], cancel: Cancel, attempts: int
    ) -> Response:
        url = f"{endpoint.base}/{quote(self._path)}/{resource}"
        if endpoint.namespace:
            url += f"?ns={quote(endpoint.namespace, safe='')}"
        parts = urlsplit(endpoint.base)
        origin = f"{parts.scheme}://{parts.netloc}"
        authorizer = self._authorizers.get(origin, self._path, self._login)
        return self._retried(_Request(endpoint, method, url, headers, authorizer), cancel, attempts)

    def _retried(self, request: _Request, cancel: Cancel, attempts: int) -> Response:
        """Send until there is an answer other than "busy"; raises what the answer means if it is not a success."""
        pause = self._settings.retry_seconds
        for attempt in range(1, attempts + 1):
            wait = pause
            try:
                response = self._authorized(request, cancel)
            except (ConnectError, BrokenError) as error:
                allowed = min(attempts, _CONNECT_ATTEMPTS) if isinstance(error, ConnectError) else attempts
                if attempt >= allowed or cancel.cancelled:
                    raise
            else:
                if response.status not in _BUSY or attempt == attempts or cancel.cancelled:
                    return _checked(response)
                wait = max(wait, _retry_after(response.headers.get("Retry-After", "")))
                response.close()
            cancel.pause(min(wait, self._settings.retry_limit_seconds))
            pause *= 2
        raise AbortedError(f"{request.url}: no attempt was allowed")

    def _authorized(self, request: _Request, cancel: Cancel) -> Response:
        endpoint, authorizer = request.endpoint, request.authorizer
        parts = urlsplit(request.url)
        origin = f"{parts.scheme}://{parts.netloc}"

        def fetch(kind: str, realm: str, sent: Mapping[str, str], form: bytes | None) -> tuple[int, bytes]:
            same = realm.startswith(f"{origin}/")
            answer = self._transport.request(
                kind,
                realm,
                headers={key: value for key, value in sent.items() if key != "Authorization"},
                private={key: value for key, value in sent.items() if key == "Authorization"},
                tls=endpoint.tls if same else Tls(skip_verify=endpoint.tls.skip_verify, ca=endpoint.tls.ca),
                dial_seconds=endpoint.dial_seconds,
                cancel=cancel,
                body=form,
            )
            if answer.status in _BUSY:
                answer.close()
                raise BrokenError(f"{urlsplit(realm).netloc}: the token server answers with HTTP {answer.status}")
            return answer.status, answer.body(DOCUMENT_LIMIT)

        def send(authorization: str) -> Response:
            private = dict(endpoint.headers)
            if authorization:
                private["Authorization"] = authorization
            return self._transport.request(
                request.method,
                request.url,
                headers=request.headers,
                private=private,
                tls=endpoint.tls,
                dial_seconds=endpoint.dial_seconds,
                cancel=cancel,
            )

        header = authorizer.header(origin, fetch) if authorizer else ""
        response = send(header)
        if response.status != 401 or authorizer is None or not _same_host(response.url, request.url):
            return response
        challenges = response.challenges()
        response.close()
        header = authorizer.answer(header, challenges, origin, fetch)
        response = send(header)
        if response.status == 401:
            # Tokens that are good for one request: another thread may have used this one up.
            private = authorizer.private(origin, fetch)
            if private != header:
                response.close()
                response = send(private)
        return response


def _same_host(one: str, other: str) -> bool:
    return urlsplit(one).netloc == urlsplit(other).netloc


def _start(response: Response, offset: int) -> int:
    """Return where a blob's body starts: a server that knows no ranges sends all, with status 200."""
    if response.status != 206:
        return 0
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first) != offset:
        response.close()
        raise DataLossError(f"{response.url}: asked for bytes from {offset}, the answer has another range")
    return offset


def _checked(response: Response) -> Response:
    """Return a successful response, or raise what its status means."""
    if response.status in {200, 206}:
        return response
    status = response.status
    where = urlsplit(response.url).netloc
    said = _said(response)
    text = f"{where}: HTTP {status}{said}"
    if status == 401:
        raise UnauthenticatedError(f"{where}: access denied: it does not accept the credentials{said}")
    if status == 403:
        raise PermissionDeniedError(f"{where}: access denied{said}")
    if status == 404:
        raise NotFoundError(f"{where}: not found{said}")
    if status in _BUSY:
        raise UnavailableError(text)
    if status == 400 and response.url.startswith("http:"):
        text += f'; if it speaks TLS, give it a hosts.toml with server = "https://{where}"'
    raise FailedPreconditionError(text)


def _said(response: Response) -> str:
    """Return the registry's own words (distribution-spec, "Error Codes"), cut and made harmless for a log."""
    try:
        document = json.loads(response.body(1 << 16))
        error = document["errors"][0]
        text = " ".join(str(error[key]) for key in ("code", "message") if error.get(key))
    except (CrishimError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""
    return f" ({''.join(c if c.isprintable() else ' ' for c in text[:200])})" if text else ""


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header: a number, or an HTTP date (RFC 9110 section 10.2.3)."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


_KINDS = (UnauthenticatedError, PermissionDeniedError, NotFoundError, DataLossError, FailedPreconditionError)


def _summary(failures: Sequence[CrishimError], what: str) -> CrishimError:
    """Return one error for all endpoints: of the last one's kind, naming each one's reason."""
    told = "; ".join(dict.fromkeys(str(error) for error in failures))
    last = failures[-1]
    for kind in _KINDS:
        if isinstance(last, kind):
            return kind(f"{what}: {told}")
    return UnavailableError(f"{UNAVAILABLE}: {what}: {told}")
