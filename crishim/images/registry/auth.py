"""Who we are to a registry: basic auth, bearer tokens and their renewal.

One `Authorizer` serves one repository of one origin for one set of credentials, and is shared by the threads of all
pulls that use it. Sources: distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".
Out of scope: sending requests (it is handed a function that does). Invariant: a token is sent only to the origin
that asked for it, credentials only to that origin and to its token server, and never in clear if it is not in clear.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from crishim.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError
from crishim.images.model import Credentials
from crishim.images.registry.challenge import Challenge, choose
from crishim.images.registry.transport import is_http

_TOKEN_SECONDS = 60  # the specification's default
_MARGIN = 5
CLIENT_ID = "crishim"

Fetch = Callable[[str, str, Mapping[str, str], bytes | None], tuple[int, bytes]]
"""(method, url, headers, form) → (status, body); raises the transport's errors."""


class Login:
    """Credentials in the forms that the CRI's AuthConfig has, made usable.

    Args:
        given: the request's credentials, or None.
        host: the registry that they will be used for; those of another `server_address` are left aside.

    Raises:
        InvalidArgumentError: `auth` is not base64 of user:password, or the registry token can be none.
    """

    def __init__(self, given: Credentials | None, host: str) -> None:
        self.user = self.password = self.identity_token = self.registry_token = ""
        if given is None or not _meant_for(given.server_address, host):
            return
        self.user, self.password = given.username, given.password
        self.identity_token, self.registry_token = given.identity_token, given.registry_token
        if given.auth and not self.user:
            self.user, self.password = _decoded(given.auth)
            if self.user == "<token>":
                self.user, self.identity_token = "", self.password
        if self.registry_token and not _is_token(self.registry_token):
            raise InvalidArgumentError(
                "auth.registry_token", "holds characters that no token has: it must be ASCII without blanks"
            )

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells one login from another; holds secrets, never to be shown."""
        return self.user, self.password, self.identity_token, self.registry_token

    @property
    def basic(self) -> str:
        """The Authorization header of basic auth, or ""."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


def _decoded(auth: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except ValueError:  # not ASCII, not base64, not UTF-8
        text = ""
    user, colon, password = text.partition(":")
    if not colon:
        raise InvalidArgumentError("auth.auth", "is not base64 of user:password")
    return user, password.rstrip("\0")


def _meant_for(address: str, host: str) -> bool:
    """Tell whether credentials for `server_address` belong to the registry `host`; an empty address is any."""
    if not address:
        return True
    name = urlsplit(address if "://" in address else f"//{address}").netloc.lower()
    if name in {"index.docker.io", "registry-1.docker.io"}:
        name = "docker.io"
    return name == host.lower()


class Authorizer:
    """Answers one origin's challenges.

    Args:
        login: who we are.
        scope: what is wanted where the challenge does not say, like `repository:library/busybox:pull`.
        always: what is wanted besides what the challenge says: one token then serves reading and writing.
    """

    def __init__(self, login: Login, scope: str, always: tuple[str, ...] = ()) -> None:
        self._login = login
        self._scope = scope
        self._always = always
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._header = f"Bearer {login.registry_token}" if login.registry_token else ""
        self._expires = float("inf")

    @property
    def anonymous(self) -> bool:
        """Whether there are no credentials to send."""
        return not any(self._login.key)

    def header(self, origin: str, fetch: Fetch) -> str:
        """Return the Authorization header to send at first; empty as long as nobody asked."""
        with self._lock:
            if self._header and time.monotonic() < self._expires:
                return self._header
            if self._challenge is None:
                return ""
            return self._renew(origin, fetch)

    def answer(self, refused: str, headers: list[str], origin: str, fetch: Fetch) -> str:
        """Answer a 401; return the Authorization header to try next, which another thread may have renewed.

        Args:
            refused: the Authorization header that was not accepted, or "".
            headers: the WWW-Authenticate headers.
            origin: scheme and host that asked.
            fetch: how the token server is asked.

        Raises:
            UnauthenticatedError: there is no answer, or the token server does not accept us.
        """
        challenge = choose(headers)
        with self._lock:
            if self._header and self._header != refused:
                return self._header
            if self._login.registry_token or (challenge is None and self.anonymous):
                raise UnauthenticatedError(denied(origin, anonymous=self.anonymous))
            if challenge is None:
                raise UnauthenticatedError(
                    f"{_host(origin)}: access denied: it takes neither Basic nor Bearer, and crishim has nothing else"
                )
            self._challenge = challenge
            header = self._renew(origin, fetch)
            if header == refused:
                raise UnauthenticatedError(denied(origin, anonymous=self.anonymous))
            return header

    def private(self, origin: str, fetch: Fetch) -> str:
        """Return a token that no other request uses, for registries whose tokens last for one request."""
        with self._lock:
            if self._challenge is None or self._challenge.scheme == "basic":
                return self._header
            return self._token(self._challenge, origin, fetch)[0]

    def _renew(self, origin: str, fetch: Fetch) -> str:
        assert self._challenge is not None
        self._header, self._expires = "", float("inf")
        if self._challenge.scheme == "basic":
            if not self._login.basic:
                raise UnauthenticatedError(denied(origin, anonymous=True))
            self._header = self._login.basic
        else:
            self._header, lifetime = self._token(self._challenge, origin, fetch)
            self._expires = time.monotonic() + lifetime
        return self._header

    def _token(self, challenge: Challenge, origin: str, fetch: Fetch) -> tuple[str, float]:
        realm = challenge.parameters["realm"]
        if not is_http(realm):
            raise FailedPreconditionError(f"{origin}: its token server {realm[:100]!r} is no http or https URL")
        parts = urlsplit(realm)
        if parts.scheme == "http" and origin.startswith("https:") and not self.anonymous:
            raise FailedPreconditionError(f"{origin}: its token server {parts.netloc} would get the password in clear")
        query: list[tuple[str, str]] = []
        if service := challenge.parameters.get("service"):
            query.append(("service", service))
        scopes = tuple(dict.fromkeys((*(challenge.scopes or (self._scope,)), *self._always)))
        if self._login.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("scope", " ".join(scopes)),
                ("refresh_token", self._login.identity_token),
            ]
            sent = {"Content-Type": "application/x-www-form-urlencoded"}
            status, body = fetch("POST", realm, sent, urlencode(query + form).encode())
        else:
            query += [("scope", scope) for scope in scopes]
            url = f"{realm}{'&' if parts.query else '?'}{urlencode(query)}"
            status, body = fetch("GET", url, {"Authorization": self._login.basic} if self._login.basic else {}, None)
        if status in {400, 401, 403}:
            raise UnauthenticatedError(denied(parts.netloc, anonymous=self.anonymous))
        if status != 200:
            raise FailedPreconditionError(f"{parts.netloc}: the token server answers with HTTP {status}")
        return _parse_token(body, parts.netloc)


def _parse_token(body: bytes, host: str) -> tuple[str, float]:
    try:
        document: Any = json.loads(body)
        token = str(document.get("token") or document.get("access_token") or "")
        lifetime = float(document.get("expires_in") or _TOKEN_SECONDS)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        token, lifetime = "", 0.0
    if not _is_token(token):
        raise FailedPreconditionError(f"{host}: the token server's answer holds no token")
    return f"Bearer {token}", max(lifetime - _MARGIN, 0.0)


def _is_token(text: str) -> bool:
    """Tell whether text can stand in a header as a token (RFC 6750, b64token, and what is in use besides)."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _host(origin: str) -> str:
    return origin.partition("://")[2] or origin


def denied(origin: str, *, anonymous: bool) -> str:
    """Return what a 401 means, with or without credentials of ours."""
    host = _host(origin)
    if anonymous:
        return f"{host}: access denied: it wants credentials (an image pull secret), or the repository does not exist"
    return f"{host}: access denied: it does not accept the credentials"
