"""One request to an endpoint of a registry, with credentials and retries.

Blocking; meant for threads. 429 and 5xx are tried again with a growing pause or the server's Retry-After, a 401 is
answered once with fresh credentials, and what a status means becomes one of our errors with the registry's own words.
Out of scope: which endpoint is asked for what (`client`, `target`). Invariant: credentials go to the origin that asks
for them and to its token server only.
"""

import json
import threading
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from crishim.errors import (
    AbortedError,
    CrishimError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.manifest import DOCUMENT_LIMIT
from crishim.images.registry.auth import Authorizer, Login, denied
from crishim.images.registry.hosts import Endpoint, Tls
from crishim.images.registry.transport import Body, BrokenError, Cancel, ConnectError, Response, Transport
from crishim.images.settings import ImageSettings
from crishim.words import number

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECT_ATTEMPTS = 3
_AUTHORIZERS = 256
READS = frozenset({200, 206})


class BusyError(UnavailableError):
    """The registry asks for a pause, of `seconds` if it said how long (else 0)."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class Authorizers:
    """The authorizers of the daemon's lifetime, so that a second pull needs no new token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Authorizer] = {}

    def get(self, origin: str, login: Login, scope: str, always: tuple[str, ...]) -> Authorizer:
        """Return the one authorizer of an origin, a login and what is wanted there (as `Authorizer` takes it)."""
        key = (origin, login.key, scope, always)
        with self._lock:
            found = self._known.pop(key, None) or Authorizer(login, scope, always)
            self._known[key] = found
            while len(self._known) > _AUTHORIZERS:
                del self._known[next(iter(self._known))]
            return found


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an endpoint; without an authorizer no credentials go along."""

    endpoint: Endpoint
    method: str
    url: str
    headers: Mapping[str, str]
    authorizer: Authorizer | None = None
    body: Body | None = None


class Exchange:
    """Sends requests for one pull or push.

    Args:
        settings: time-outs and attempts.
        authorizers: shared by all pulls and pushes.
        login: who we are.
        scope: what the requests need where a challenge does not say it, like `repository:library/busybox:pull`.
        always: scopes that are asked for besides what a challenge says.
    """

    def __init__(
        self,
        settings: ImageSettings,
        authorizers: Authorizers,
        login: Login,
        scope: str,
        always: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._authorizers = authorizers
        self._login = login
        self._scope = scope
        self._always = always
        self._transport = Transport(settings.stall_seconds)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def request(
        self, endpoint: Endpoint, method: str, path: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Request:
        """Return a request for what lies under `path` at an endpoint, like `library/busybox/tags/list`."""
        url = f"{endpoint.base}/{quote(path, safe='/:')}"
        if endpoint.namespace:
            url += f"?ns={quote(endpoint.namespace, safe='')}"
        return Request(endpoint, method, url, headers, self.authorizer(endpoint), body)

    def authorizer(self, endpoint: Endpoint, *more: str) -> Authorizer:
        """Return who answers an endpoint's challenges, with `more` scopes than the other requests need."""
        parts = urlsplit(endpoint.base)
        origin = f"{parts.scheme}://{parts.netloc}"
        return self._authorizers.get(origin, self._login, self._scope, (*self._always, *more))

    def retried(self, request: Request, cancel: Cancel, attempts: int, accepted: Container[int] = READS) -> Response:
        """Send until there is an answer other than "busy"; raises what it means if its status is not `accepted`."""
        pause = self._settings.retry_seconds
        for attempt in range(1, attempts + 1):
            wait = pause
            try:
                response = self.authorized(request, cancel)
            except (ConnectError, BrokenError) as error:
                allowed = min(attempts, _CONNECT_ATTEMPTS) if isinstance(error, ConnectError) else attempts
                if attempt >= allowed or cancel.cancelled:
                    raise
            else:
                if response.status not in _BUSY or attempt == attempts or cancel.cancelled:
                    return checked(response, accepted)
                wait = max(wait, _retry_after(response.headers.get("Retry-After", "")))
                response.close()
            cancel.pause(min(wait, self._settings.retry_limit_seconds))
            pause *= 2
        raise AbortedError(f"{request.url}: no attempt was allowed")

    def authorized(self, request: Request, cancel: Cancel) -> Response:
        """Send once, and again where a challenge had to be answered; the answer may have any status."""
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
                secret=form is not None,
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
                body=request.body,
            )

        header = authorizer.header(origin, fetch) if authorizer else ""
        response = send(header)
        if authorizer is None or not _same_host(response.url, request.url):
            return response
        response.authenticated = not authorizer.anonymous
        if response.status != 401:
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
        response.authenticated = not authorizer.anonymous
        return response


def _same_host(one: str, other: str) -> bool:
    return urlsplit(one).netloc == urlsplit(other).netloc


def checked(response: Response, accepted: Container[int] = READS) -> Response:
    """Return a successful response, or raise what its status means."""
    if response.status in accepted:
        return response
    status = response.status
    where = urlsplit(response.url).netloc
    said = _said(response)
    text = f"{where}: HTTP {status}{said}"
    if status == 401:
        raise UnauthenticatedError(f"{denied(where, anonymous=not response.authenticated)}{said}")
    if status == 403:
        raise PermissionDeniedError(f"{where}: access denied{said}")
    if status == 404:
        raise NotFoundError(f"{where}: not found{said}")
    if status in _BUSY:
        raise BusyError(text, _retry_after(response.headers.get("Retry-After", "")))
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
    seconds = number(value.strip())
    if seconds is not None:
        return float(seconds)
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
