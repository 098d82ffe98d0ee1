"""Image references: `[host[:port]/]path[:tag][@digest]`, normalised like the field does.

Pure. Grammar: github.com/distribution/reference, as restated by the distribution spec ("Pulling manifests") and the
image spec ("Digests"). The host may have upper case, the path may not; a port is told from a tag by the slash that
follows; 64 hexadecimal digits alone are an id, not a name. Invariant: `str(parse(x))` parses to itself.
"""

import re
from dataclasses import dataclass

from crishim.errors import InvalidArgumentError

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
_NAME_LIMIT = 255

_HOST = re.compile(
    r"(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)(?::[0-9]{1,5})?"
)
_PORT = re.compile(r":([0-9]+)$")
_LAST_PORT = 65535
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference; `tag` or `digest` or both are set."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Host and path, like `docker.io/library/busybox`."""
        return f"{self.host}/{self.path}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, which wins, or the tag."""
        return self.digest or self.tag

    @property
    def repo_tag(self) -> str:
        """The name an image gets from this reference; empty for a digest, which makes no tag."""
        return "" if self.digest else f"{self.repository}:{self.tag}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """Tell whether `text` is a digest of a known algorithm and length."""
    return _DIGEST.fullmatch(text) is not None


def is_hex(text: str) -> bool:
    """Tell whether `text` could be an id or the start of one."""
    return _HEX.fullmatch(text) is not None


def parse(text: str, field: str = "image.image") -> Reference:
    """Parse and normalise a reference.

    Args:
        text: as the user wrote it.
        field: path of the request's field, for the error.

    Raises:
        InvalidArgumentError: what is wrong, and where.
    """

    def wrong(problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(field, f"{text!r} {problem}")

    if not text:
        raise InvalidArgumentError(field, "is empty; give a name like busybox:1.36 or registry.example/app@sha256:…")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise wrong(f"has the digest {digest!r}, which is not sha256: and 64 (or sha512: and 128) hexadecimal digits")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise wrong(f"has the tag {tag!r}; a tag is up to 128 letters, digits, '_', '.' and '-', not first '.' or '-'")
    host, path = _split(head + slash + last)
    if not _HOST.fullmatch(host):
        raise wrong(f"has the registry host {host!r}, which is no host name with an optional port")
    port = _PORT.search(host)
    if port is not None and not 1 <= int(port[1]) <= _LAST_PORT:
        raise wrong(f"has the port {port[1]}, and ports are from 1 to {_LAST_PORT}")
    if not path:
        raise wrong("names no repository")
    for part in path.split("/"):
        if not _PATH_PART.fullmatch(part):
            hint = "; the repository must be in lower case" if part != part.lower() else ""
            raise wrong(f"has the repository part {part!r}, which the reference grammar does not allow{hint}")
    if len(host) + 1 + len(path) > _NAME_LIMIT:
        raise wrong(f"has a name longer than {_NAME_LIMIT} characters")
    if not slash and not colon and not at and len(path) == len("library/") + 64 and is_hex(path[8:]):
        raise wrong("is an image id, not a name")
    return Reference(host, path, tag or ("" if digest else DEFAULT_TAG), digest)


def _split(name: str) -> tuple[str, str]:
    """Return host and path: the first part is a host if it has a dot, a port, an upper-case letter, or is localhost."""
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or first != first.lower() or any(c in first for c in ".:[")):
        host, path = first, rest
    else:
        host, path = DEFAULT_HOST, name
    if host == "index.docker.io":
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and path and "/" not in path:
        path = f"library/{path}"
    return host, path
