"""One repository of one registry, reached through its mirrors: manifests and blobs (OCI distribution-spec, "Pull").

Blocking; meant for threads. Each endpoint is tried in order; what went wrong at each stands in the error, and in the
log where the pull goes on with the next. Out of scope: credentials and retries (`exchange`), what manifests mean,
storing blobs. Invariant: no body is believed here; callers check digests.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from crishim.errors import (
    AbortedError,
    CrishimError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    RegistryUnavailableError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.manifest import ACCEPT, DOCUMENT_LIMIT
from crishim.images.model import Credentials
from crishim.images.reference import Reference, is_digest
from crishim.images.registry.auth import Login
from crishim.images.registry.exchange import Authorizers, Exchange, Request
from crishim.images.registry.hosts import PULL, RESOLVE, Endpoint, load
from crishim.images.registry.mirrors import Mirrors
from crishim.images.registry.transport import Cancel, Response, is_http
from crishim.images.settings import ImageSettings
from crishim.log import get_logger
from crishim.words import number

log = get_logger("crishim.images")
T = TypeVar("T")
_BAD = (UnavailableError, DataLossError)
"""What a mirror does that lets it rest: it is away or too busy, or what it sends is not what was asked for."""


class Repository:
    """A repository and the endpoints that have it.

    Args:
        reference: names host and repository.
        credentials: the request's, or None.
        settings: time-outs and attempts.
        authorizers: shared by all pulls.
        mirrors: shared by all pulls.

    Raises:
        FailedPreconditionError: the host's hosts.toml is wrong.
        InvalidArgumentError: the credentials cannot be read.
    """

    def __init__(
        self,
        reference: Reference,
        credentials: Credentials | None,
        settings: ImageSettings,
        authorizers: Authorizers,
        mirrors: Mirrors,
    ) -> None:
        self.name = reference.repository
        self._mirrors = mirrors
        self._sources: dict[str, Endpoint] = {}
        self._spoiled: dict[str, set[Endpoint]] = {}
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
            what = f"{_host(endpoint)}: manifest {target}"
            if len(data) > DOCUMENT_LIMIT:
                raise DataLossError(f"{what} is larger than the limit of {DOCUMENT_LIMIT} bytes")
            stated = target if is_digest(target) else response.headers.get("Docker-Content-Digest", "")
            algorithm = stated.partition(":")[0] if is_digest(stated) else "sha256"
            digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
            if is_digest(stated) and digest != stated:
                raise DataLossError(f"{what} has the digest {digest}, not {stated}")
            if endpoint is not self._endpoints[-1] and not _is_document(data):
                raise DataLossError(f"{what} is no JSON document")
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
            start = _start(response, offset)
            self._sources[digest] = endpoint
            return response, start

        self._sources.pop(digest, None)
        spoiled = self._spoiled.get(digest, ())
        endpoints = [e for e in self._able(digest) if e not in spoiled]
        try:
            return self._each(endpoints, ask, f"{self.name}: blob {digest}", cancel)
        except NotFoundError:
            for url in filter(is_http, urls):
                foreign = Endpoint(url)
                response = self._exchange.retried(Request(foreign, "GET", url, headers), cancel, 1)
                return response, _start(response, offset)
            raise

    def doubtful(self, digest: str) -> bool:
        """Tell whether a blob comes from a mirror, so that its bytes may yet be had right elsewhere."""
        source = self._sources.get(digest)
        return source is not None and source is not self._able(digest)[-1]

    def other(self, digest: str, problem: CrishimError) -> bool:
        """Ask the mirror that a blob came from for it no more, after `problem`; False if it did not come from one."""
        if not self.doubtful(digest):
            return False
        source = self._sources.pop(digest)
        self._spoiled.setdefault(digest, set()).add(source)
        self._failed(source, problem, f"{self.name}: blob {digest}")
        return True

    # --- endpoints -----------------------------------------------------------------------------------------------

    def _able(self, target: str) -> list[Endpoint]:
        wanted = PULL if is_digest(target) else RESOLVE
        return [endpoint for endpoint in self._endpoints if wanted in endpoint.capabilities]

    def _each(self, endpoints: Sequence[Endpoint], ask: Callable[[Endpoint, int], T], what: str, cancel: Cancel) -> T:
        """Ask the endpoints in turn; the registry itself, the last, is tried hardest and decides the kind of error.

        Mirrors that rest are asked after it, and only if it cannot be reached.
        """
        if not endpoints:
            raise FailedPreconditionError(f"{what}: hosts.toml names no host that may be asked for it")
        reasons = {e: reason for e in endpoints[:-1] if (reason := self._mirrors.resting(e.base))}
        mirrors = [e for e in endpoints[:-1] if e not in reasons]
        failures: list[CrishimError] = []
        for endpoint in mirrors:
            try:
                return self._ask(endpoint, ask, 1, what, cancel)
            except CrishimError as error:
                failures.append(error)
        try:
            return self._ask(endpoints[-1], ask, self._settings.attempts, what, cancel)
        except UnavailableError as error:
            decisive: CrishimError = error
            for endpoint in reasons:
                try:
                    return self._ask(endpoint, ask, 1, what, cancel)
                except CrishimError as failure:
                    failures.append(failure)
        except CrishimError as error:
            decisive = error
            failures += [UnavailableError(f"{_host(e)}: not asked, it failed before: {r}") for e, r in reasons.items()]
        raise summary([*failures, decisive], what)

    def _ask(
        self, endpoint: Endpoint, ask: Callable[[Endpoint, int], T], attempts: int, what: str, cancel: Cancel
    ) -> T:
        """Ask one endpoint, and remember how it did if it is a mirror."""
        mirror = endpoint is not self._endpoints[-1]
        began = self._mirrors.now()
        try:
            answer = ask(endpoint, attempts)
        except CrishimError as error:
            if cancel.cancelled:
                raise AbortedError(f"{what}: the pull was cancelled") from None
            if mirror:
                self._failed(endpoint, error, what)
            raise
        if mirror:
            self._mirrors.worked(endpoint.base, began)
        return answer

    def _failed(self, mirror: Endpoint, error: CrishimError, what: str) -> None:
        """Say in the log that the pull goes on without a mirror, and let it rest if it is its fault."""
        if isinstance(error, _BAD):
            rest = round(self._mirrors.failed(mirror.base, str(error)))
            log.warning("a mirror failed", mirror=mirror.base, wanted=what, error=str(error), rests_seconds=rest)
        else:
            log.info("a mirror does not have what is wanted", mirror=mirror.base, wanted=what, error=str(error))

    def _send(
        self, endpoint: Endpoint, method: str, resource: str, headers: Mapping[str, str], cancel: Cancel, attempts: int
    ) -> Response:
        request = self._exchange.request(endpoint, method, f"{self._path}/{resource}", headers)
        return self._exchange.retried(request, cancel, attempts)


def _host(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.base).netloc


def _is_document(data: bytes) -> bool:
    """Tell a manifest from a web page that stands in its place."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _start(response: Response, offset: int) -> int:
    """Return where a blob's body starts: a server that knows no ranges sends all, with status 200."""
    if response.status != 206:
        return 0
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    if unit != "bytes" or number(first) != offset:
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
    return RegistryUnavailableError(f"{what}: {told}")
