"""Where an image's registry is reached: `certs.d/<host>/hosts.toml` in containerd's format, read at each pull.

The directory of a host is, first found, `host_port_`, `host:port` or `_default` below the first directory of the
configuration that has one (containerd's docs/hosts.md). Without a `hosts.toml` its `*.crt` are CA certificates and
its `*.cert` with `*.key` client certificates, as Docker has it. A host without a scheme is reached by https, or by
plain http if it is a loopback host and nothing of TLS is set for it. Invariant: mirrors come in the file's order, the
registry itself last. Out of scope: requests.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from crishim.errors import FailedPreconditionError
from crishim.words import number, unreadable

PULL, RESOLVE, PUSH = "pull", "resolve", "push"
_ALL = frozenset({PULL, RESOLVE, PUSH})
_DOCKER_HUB = "registry-1.docker.io"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
DIAL_SECONDS = 10.0
_LONGEST_DIAL = 3600.0
_FILE_LIMIT = 1 << 20
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server's certificate is checked and which client certificates are shown (paths of PEM files)."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place where the registry's content is to be had.

    Attributes:
        base: URL with the path under which repositories are, usually ending in `/v2`.
        namespace: the registry that is meant, sent as `?ns=` to mirrors.
    """

    base: str
    capabilities: frozenset[str] = _ALL
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    dial_seconds: float = DIAL_SECONDS
    namespace: str = ""


def load(host: str, directories: Sequence[str]) -> tuple[Endpoint, ...]:
    """Return the endpoints of a registry host, in the order to try.

    Raises:
        FailedPreconditionError: the host's configuration is wrong; names the file and the key.
    """
    directory = _directory(host, directories)
    if directory is None:
        return _default(host, Tls())
    path = os.path.join(directory, "hosts.toml")
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except FileNotFoundError:
        return _default(host, _docker_certificates(directory))
    except OSError as error:
        raise FailedPreconditionError(f"{path}: {error.strerror}") from None
    return parse(data, host, path)


def parse(data: bytes, host: str, path: str) -> tuple[Endpoint, ...]:
    """Return the endpoints that a hosts.toml describes; `path` is for errors and relative file names."""
    import tomllib

    if len(data) > _FILE_LIMIT:
        raise FailedPreconditionError(f"{path}: is larger than {_FILE_LIMIT} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FailedPreconditionError(f"{path}: {unreadable(error, 'TOML')}") from None
    reader = _Reader(path)
    mirrors = reader.table(document.get("host"), "host")
    endpoints = [
        reader.endpoint(reader.table(section, f"host.{name!r}"), f"host.{name!r}", name, host)
        for name, section in mirrors.items()
    ]
    server = reader.text(document.get("server"), "server")
    if server:
        endpoints.append(reader.endpoint(document, "server", server, host))
    else:
        # The settings at the top are the registry's own, also where its URL is not given.
        own = _default(host, reader.tls(document, "server"))
        endpoints += [reader.endpoint(document, "server", e.base, host) for e in own]
    return tuple(endpoints)


def is_loopback(host: str) -> bool:
    """Tell whether `host[:port]` is this machine, for which plain http is the custom."""
    import ipaddress

    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def seconds(text: str) -> float | None:
    """Return the seconds of a Go duration like `1m30s`; None if it is none."""
    parts = _DURATION.findall(text)
    if not parts or "".join(count + unit for count, unit in parts) != text:
        return None
    return sum(float(count) * _UNITS[unit] for count, unit in parts)


def _directory(host: str, directories: Sequence[str]) -> str | None:
    name, colon, port = host.rpartition(":")
    names = [f"{name}_{port}_"] if colon and number(port) is not None else []
    for top in directories:
        for candidate in (*names, host, "_default"):
            path = os.path.join(top, candidate)
            if os.path.isdir(path):
                return path
    return None


def _default(host: str, tls: Tls) -> tuple[Endpoint, ...]:
    if host == "docker.io":
        return (Endpoint(f"https://{_DOCKER_HUB}/v2", tls=tls),)
    return (Endpoint(f"{_scheme(host, tls)}://{host}/v2", tls=tls),)


def _scheme(host: str, tls: Tls) -> str:
    return "http" if is_loopback(host) and tls == Tls() else "https"


def _docker_certificates(directory: str) -> Tls:
    names = sorted(os.listdir(directory))
    ca = tuple(os.path.join(directory, name) for name in names if name.endswith(".crt"))
    client = tuple(
        (os.path.join(directory, name), os.path.join(directory, f"{name.removesuffix('.cert')}.key"))
        for name in names
        if name.endswith(".cert")
    )
    return Tls(ca, client)


class _Reader:
    """Typed access to a hosts.toml; every error names the file and the key."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _wrong(self, key: str, problem: str) -> FailedPreconditionError:
        return FailedPreconditionError(f"{self._path}: {key}: {problem}")

    def table(self, value: Any, key: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(key, "must be a table")
        return value

    def text(self, value: Any, key: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or _CONTROL.search(value):
            raise self._wrong(key, "must be a string without control characters")
        return value

    def flag(self, value: Any, key: str) -> bool:
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return bool(value)

    def texts(self, value: Any, key: str) -> tuple[str, ...]:
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        return tuple(self.text(v, key) for v in values)

    def endpoint(self, section: Mapping[str, Any], key: str, url: str, registry: str) -> Endpoint:
        tls = self.tls(section, key)
        override = self.flag(section.get("override_path"), f"{key}.override_path")
        base, host = self._base(url, key, tls, override=override)
        capabilities = self.texts(section.get("capabilities"), f"{key}.capabilities")
        unknown = set(capabilities) - _ALL
        if unknown:
            raise self._wrong(f"{key}.capabilities", f"{min(unknown)!r} is none of pull, resolve, push")
        return Endpoint(
            base,
            frozenset(capabilities) or _ALL,
            tls,
            self._headers(section.get("header"), f"{key}.header"),
            self._dial(section.get("dial_timeout"), f"{key}.dial_timeout"),
            "" if host == registry or (registry == "docker.io" and host == _DOCKER_HUB) else registry,
        )

    def tls(self, section: Mapping[str, Any], key: str) -> Tls:
        """Read what a section says about certificates."""
        return Tls(
            tuple(self._file(name) for name in self.texts(section.get("ca"), f"{key}.ca")),
            self._clients(section.get("client"), f"{key}.client"),
            self.flag(section.get("skip_verify"), f"{key}.skip_verify"),
        )

    def _base(self, url: str, key: str, tls: Tls, *, override: bool) -> tuple[str, str]:
        try:
            if "://" not in url:
                url = f"{_scheme(url.partition('/')[0], tls)}://{url}"
            parts = urlsplit(url)
            fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a bracket that is not closed, a port that is no number
            fine = False
        if not fine or "@" in parts.netloc or not (url.isascii() and url.isprintable()) or " " in url:
            raise self._wrong(key, f"{url[:200]!r} is no http or https URL of a host")
        path = parts.path.rstrip("/")
        if not override and not path.endswith("/v2"):
            path += "/v2"
        return f"{parts.scheme}://{parts.netloc}{path}", parts.netloc

    def _file(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._path), name)

    def _clients(self, value: Any, key: str) -> tuple[tuple[str, str], ...]:
        """Read `client`: a file with both parts, a list of such files, or a list of [certificate, key] pairs."""
        found = []
        for entry in value if isinstance(value, list) else [value] if value is not None else []:
            pair = entry if isinstance(entry, list) else [entry, ""]
            if len(pair) != 2 or not all(isinstance(name, str) for name in pair) or not pair[0]:
                raise self._wrong(key, "must be a file, a list of files, or a list of [certificate, key] pairs")
            certificate, secret = (self.text(name, key) for name in pair)
            found.append((self._file(certificate), self._file(secret) if secret else ""))
        return tuple(found)

    def _headers(self, value: Any, key: str) -> tuple[tuple[str, str], ...]:
        found = []
        for name, entry in self.table(value, key).items():
            texts = self.texts(entry, f"{key}.{name!r}")
            if not _HEADER_NAME.fullmatch(name) or not all(text.isascii() for text in texts):
                raise self._wrong(f"{key}.{name!r}", "is no HTTP header: its name or its value has other characters")
            found += [(name, text) for text in texts]
        return tuple(found)

    def _dial(self, value: Any, key: str) -> float:
        if value is None:
            return DIAL_SECONDS
        found = seconds(self.text(value, key))
        if not found or found > _LONGEST_DIAL:
            raise self._wrong(key, f"{value[:100]!r} is no duration like '10s' of an hour at most")
        return found
