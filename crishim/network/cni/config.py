"""CNI configurations: the first of the directory by name, checked, and watched for changes.

Source: CNI's SPEC.md, section 1, and libcni/conf.go. Out of scope: running plugins (`client`). Invariant: a file that
is half-written does not take a network away: for a moment the last good one counts.
"""

import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

from crishim.errors import FailedPreconditionError
from crishim.network.cni.model import NetworkList, Plugin
from crishim.words import unreadable

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_SUFFIXES = (".conflist", ".conf", ".json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MOST_BYTES = 1 << 20

Signature = tuple[tuple[str, int, int, int, int], ...]


def parse(text: str, where: str = "the stored network") -> NetworkList:
    """Return the network of a conflist's text, or of a single plugin's configuration.

    Raises:
        FailedPreconditionError: it is wrong; the message names `where`, the field and the remedy.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FailedPreconditionError(f"{where} {unreadable(error)}; write it anew or remove it") from None
    if not isinstance(document, dict):
        raise FailedPreconditionError(f"{where}: must hold a JSON object")
    if "plugins" not in document:
        keys = {key: document[key] for key in ("cniVersion", "name", "disableCheck") if key in document}
        document = {**keys, "plugins": [document]}
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FailedPreconditionError(f"{where}: name: must be letters, digits, '_', '.' or '-', is {name!r}")
    plugins = document["plugins"]
    if not isinstance(plugins, list) or not plugins:
        raise FailedPreconditionError(f"{where}: plugins: must be a list of at least one plugin")
    return NetworkList(
        name=name,
        version=_version(document, where),
        plugins=tuple(_plugin(entry, f"{where}: plugins[{i}]") for i, entry in enumerate(plugins)),
        disable_check=_flag(document, "disableCheck", where),
        disable_gc=_flag(document, "disableGC", where),
        text=json.dumps(document, separators=(",", ":")),
    )


def load(directory: str) -> NetworkList | None:
    """Return the directory's network: the first file by name; None if there is none.

    Raises:
        FailedPreconditionError: the file is wrong or cannot be read.
    """
    files = _files(directory)
    if not files:
        return None
    path = os.path.join(directory, files[0])
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FailedPreconditionError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{path}: {unreadable(error)}") from None
    if len(text) > _MOST_BYTES:
        raise FailedPreconditionError(f"{path}: is larger than {_MOST_BYTES} bytes")
    return parse(text, path)


class Watcher:
    """The directory's network, read again only when a file changed.

    Args:
        directory: may be missing.
        patience: seconds for which the last good network counts while the new one is wrong.
        clock: seconds.
    """

    def __init__(self, directory: str, patience: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._patience = patience
        self._clock = clock
        self._seen: Signature | None = None
        self._good: NetworkList | None = None
        self._error: FailedPreconditionError | None = None
        self._since = 0.0

    def current(self) -> NetworkList | None:
        """Return the network, None if none is configured.

        Raises:
            FailedPreconditionError: the configuration is wrong, and has been for longer than `patience`.
        """
        signature = self._signature()
        if signature != self._seen:
            try:
                self._good, self._error = load(self._directory), None
            except FailedPreconditionError as error:
                if self._error is None:
                    self._since = self._clock()
                self._error = error
            self._seen = signature
        if self._error is not None and (self._good is None or self._clock() - self._since >= self._patience):
            raise self._error
        return self._good

    def _signature(self) -> Signature:
        found = []
        for name in _files(self._directory):
            try:
                status = os.stat(os.path.join(self._directory, name))
            except OSError:
                continue
            found.append((name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)


def _files(directory: str) -> list[str]:
    """Return the configurations' names; directories and links to nothing are none, as for libcni."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(_SUFFIXES) and entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # not "no configuration": pods would get another network
        raise FailedPreconditionError(f"{directory}: {error.strerror}; let the daemon read it") from None


def _version(document: dict[str, Any], where: str) -> str:
    versions = document.get("cniVersions")
    named = document.get("cniVersion", "0.1.0") or "0.1.0"
    candidates = [*versions, named] if isinstance(versions, list) else [named]
    known = [version for version in VERSIONS if version in candidates]
    if not known:
        raise FailedPreconditionError(f"{where}: cniVersion: must be one of {', '.join(VERSIONS)}, is {named!r}")
    return known[-1]


def _plugin(entry: Any, where: str) -> Plugin:
    kind = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or not kind or "/" in kind or kind in {".", ".."}:
        raise FailedPreconditionError(f"{where}.type: must be the name of a plugin's program, is {kind!r}")
    declared = entry.get("capabilities") or {}
    if not isinstance(declared, dict):
        raise FailedPreconditionError(f"{where}.capabilities: must be an object of booleans")
    return Plugin(kind, frozenset(name for name, on in declared.items() if on is True), entry)


def _flag(document: dict[str, Any], key: str, where: str) -> bool:
    value = document.get(key, False)
    if value in ("true", "false"):  # as strings in older configurations: libcni takes both
        return bool(value == "true")
    if not isinstance(value, bool):
        raise FailedPreconditionError(f"{where}: {key}: must be true or false, is {value!r}")
    return value
