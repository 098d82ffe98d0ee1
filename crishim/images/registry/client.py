"""One repository of one registry, reached through its mirrors: manifests and blobs (OCI distribution-spec, "Pull").

Blocking; meant for threads. Each endpoint is tried in order; what went wrong at each stands in the error. Out of scope:
credentials and retries (`exchange`), what manifests mean, storing blobs. Invariant: no body is believed here; callers
check digests.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

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
from crishim.images.registry.auth import Login
from crishim.images.registry.exchange import Authorizers, Exchange, Request
from crishim.images.registry.hosts import PULL, RESOLVE, Endpoint, load
from crishim.images.registry.transport import Cancel, Response
from crishim.images.settings import ImageSettings

T = TypeVar("T")
_MIRROR_ATTEMPTS = 2
UNAVAILABLE = "RegistryUnavailable"
"""kubelet looks for messages that begin with this word (contract.md)."""


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
        self._settings = settings
        self._endpoints = load(reference.host, settings.certs_d)
        login = Login(credentials, reference.host)
        self._exchange = Exchange(settings, authorizers, login, f"repository:{reference.path}:pull")

    def close(self) -> None:
        """Close idle connections."""
        self._exchange.close()

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
                response = self._exchange.retried(Request(foreign, "GET", url, headers), cancel, 1)
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
        raise summary(failures, what)

    def _send(
        self, endpoint: Endpoint, method: str, resource: str, headers: Mapping[str, str], cancel: Cancel, attempts: int
    ) -> Response:
        request = self._exchange.request(endpoint, method, f"{self._path}/{resource}", headers)
        return self._exchange.retried(request, cancel, attempts)


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


_KINDS = (UnauthenticatedError, PermissionDeniedError, NotFoundError, DataLossError, FailedPreconditionError)


def summary(failures: Sequence[CrishimError], what: str) -> CrishimError:
    """Return one error for all endpoints: of the last one's kind, naming each one's reason."""
    told = "; ".join(dict.fromkeys(str(error) for error in failures))
    last = failures[-1]
    for kind in _KINDS:
        if isinstance(last, kind):
            return kind(f"{what}: {told}")
    return UnavailableError(f"{UNAVAILABLE}: {what}: {told}")
