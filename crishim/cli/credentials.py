"""Registry credentials of the person at the shell: docker's config.json, podman's auth.json, helper programs.

Read here, in the client, and sent along with a pull or push: the daemon never looks into a home directory. The file is
$REGISTRY_AUTH_FILE (podman's), else $DOCKER_CONFIG/config.json, else ~/.docker/config.json. For a registry
`credHelpers` count before `credsStore`, and both before `auths`, where podman's longer keys (`quay.io/team/app`) count
before the host's. Helpers are docker's: `docker-credential-NAME get`, the server's name on standard input, JSON on
standard output.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from crishim._proto.crishim.v1.images_pb2 import Credentials
from crishim.errors import FailedPreconditionError, InvalidArgumentError
from crishim.images.reference import DEFAULT_HOST, Reference, parse
from crishim.words import unreadable

HELPER_SECONDS = 60.0
_HUB = "https://index.docker.io/v1/"
"""What docker calls its own registry in the file and to helpers."""
_HUB_HOSTS = frozenset({"index.docker.io", "registry-1.docker.io", "docker.io"})
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105  docker's mark, not a secret
_FILE_LIMIT = 16 << 20


def of(name: str, given: str | None, environment: Mapping[str, str]) -> Credentials | None:
    """Return the credentials for an image's registry.

    Args:
        name: the image.
        given: `--creds USER:PASSWORD`, which counts alone, or None.
        environment: of the process.

    Raises:
        InvalidArgumentError: the name, `--creds` or the file is wrong.
        FailedPreconditionError: a helper fails.
    """
    reference = parse(name, "image")
    if given is not None:
        return _from_flag(given)
    path = config_path(environment)
    document = _load(path, asked_for="REGISTRY_AUTH_FILE" in environment)
    return find(document, reference, path) if document else None


def config_path(environment: Mapping[str, str]) -> str:
    """Return the file that credentials are read from."""
    if environment.get("REGISTRY_AUTH_FILE"):
        return environment["REGISTRY_AUTH_FILE"]
    directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "/root"), ".docker")
    return os.path.join(directory, "config.json")


def find(document: Mapping[str, Any], reference: Reference, path: str) -> Credentials | None:
    """Return what a config file says for a registry; `path` is for errors."""
    server = _HUB if reference.host == DEFAULT_HOST else reference.host
    helpers = _table(document, "credHelpers", path)
    for key in _keys(reference):
        if key in helpers:
            asked = server if key in {reference.host, _HUB} else key
            return _ask(_helper_name(helpers[key], f"credHelpers.{key}", path), asked)
    store = document.get("credsStore")
    if store:
        found = _ask(_helper_name(store, "credsStore", path), server)
        if found is not None:
            return found
    auths = {_normal(key): (key, value) for key, value in _table(document, "auths", path).items()}
    for key in _keys(reference):
        if key in auths:
            return _entry(auths[key][1], f"auths.{auths[key][0]}", path)
    return None


def _from_flag(given: str) -> Credentials:
    user, colon, password = given.partition(":")
    if not colon or not user:
        raise InvalidArgumentError("--creds", "must be USER:PASSWORD")
    if given != given.encode("utf-8", "replace").decode():
        raise InvalidArgumentError("--creds", "must be UTF-8")
    return Credentials(username=user, password=password)


def _keys(reference: Reference) -> Iterator[str]:
    """Yield the keys that may stand for a reference, the longest first."""
    parts = reference.path.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((reference.host, *parts[:count]))
    yield reference.host
    if reference.host == DEFAULT_HOST:
        yield _HUB


def _normal(key: str) -> str:
    """Return a key of `auths` without scheme and API path; docker's own registry has several names."""
    plain = key.partition("://")[2] or key
    host, slash, path = plain.partition("/")
    host = DEFAULT_HOST if host in _HUB_HOSTS else host
    path = path.strip("/")
    return host if not slash or path in {"", "v1", "v2"} else f"{host}/{path}"


def _load(path: str, *, asked_for: bool) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT)
    except FileNotFoundError:
        if asked_for:
            raise InvalidArgumentError("REGISTRY_AUTH_FILE", f"{path} does not exist") from None
        return {}
    except OSError as error:
        raise InvalidArgumentError("", f"{path}: cannot be read: {error.strerror}") from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("", f"{path}: {unreadable(error)}") from None
    if not isinstance(document, dict):
        raise InvalidArgumentError("", f"{path}: must hold a JSON object")
    return document


def _table(document: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidArgumentError("", f"{path}: {key} must be an object")
    return value


def _entry(entry: Any, key: str, path: str) -> Credentials | None:
    """Return the credentials of an entry of `auths`; one that is empty only marks that a helper has them."""
    if not isinstance(entry, dict):
        raise InvalidArgumentError("", f"{path}: {key} must be an object")

    def text(name: str) -> str:
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise InvalidArgumentError("", f"{path}: {key}.{name} must be a string")
        return value

    made = Credentials(
        username=text("username"),
        password=text("password"),
        auth=text("auth"),
        identity_token=text("identitytoken"),
        registry_token=text("registrytoken"),
    )
    return made if made.ByteSize() else None


def _helper_name(value: Any, key: str, path: str) -> str:
    if not isinstance(value, str) or not value or "/" in value or "\0" in value:
        raise InvalidArgumentError("", f"{path}: {key} must be the name of a docker-credential-NAME program")
    return f"docker-credential-{value}"


def _ask(program: str, server: str) -> Credentials | None:
    """Ask a helper for a server's credentials; None if it has none."""
    try:
        done = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise FailedPreconditionError(f"{program} is not on PATH, and the credentials are with it") from None
    except subprocess.TimeoutExpired:
        raise FailedPreconditionError(f"{program} has not answered in {HELPER_SECONDS:.0f} s") from None
    except OSError as error:
        raise FailedPreconditionError(f"{program}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{program}: its answer {unreadable(error)}") from None
    if done.returncode != 0:
        said = " ".join((done.stdout.strip() or done.stderr.strip()).split())
        if _NOT_FOUND in said:
            return None
        raise FailedPreconditionError(f"{program}: {said[:300] or f'exit status {done.returncode}'}")
    try:
        answer = json.loads(done.stdout)
        user, secret = (answer[key].encode().decode() for key in ("Username", "Secret"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FailedPreconditionError(f"{program}: its answer is no JSON with Username and Secret") from None
    if user == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username=user, password=secret)
