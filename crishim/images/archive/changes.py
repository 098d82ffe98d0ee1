"""Dockerfile instructions that set an image's config, as `docker import --change` takes them.

Pure. Only instructions that need no build: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR.
Sources: docker's Dockerfile reference (shell and exec form, quoting); image-spec, config.md.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crishim.errors import InvalidArgumentError

_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""", re.DOTALL)
_QUOTED = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'""", re.DOTALL)
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*|\d{1,2}")


def apply(changes: Sequence[str], field: str) -> dict[str, Any]:
    """Return the `config` object that the instructions describe, in OCI's names.

    Args:
        changes: one instruction each, like `ENV A=1`; later ones count.
        field: path of the request's field, for errors.

    Raises:
        InvalidArgumentError: the instruction's place in the list, and what is wrong.
    """
    config: dict[str, Any] = {}
    for number, change in enumerate(changes):
        place = f"{field}[{number}]"
        word, rest = _head(change)
        handler = _INSTRUCTIONS.get(word.upper())
        if handler is None:
            known = ", ".join(_INSTRUCTIONS)
            raise InvalidArgumentError(place, f"{word[:40]!r} is not one of {known}")
        if not rest or "\0" in rest:
            raise InvalidArgumentError(place, f"{word.upper()} needs a value without zero bytes")
        handler(config, rest, place)
    return config


def _head(text: str) -> tuple[str, str]:
    """Return the first word and the rest."""
    head, *rest = text.split(None, 1) or [""]
    return head, "".join(rest).strip()


def _command(key: str) -> Callable[[dict[str, Any], str, str], None]:
    def handle(config: dict[str, Any], text: str, place: str) -> None:
        words = _exec_form(text, place)
        config[key] = [*_SHELL, text] if words is None else words

    return handle


def _text(key: str) -> Callable[[dict[str, Any], str, str], None]:
    def handle(config: dict[str, Any], text: str, place: str) -> None:
        words = _words(text, place)
        if len(words) != 1:
            raise InvalidArgumentError(place, f"{key} takes one value; quote it if it has spaces")
        config[key] = words[0]

    return handle


def _workdir(config: dict[str, Any], text: str, place: str) -> None:
    _text("WorkingDir")(config, text, place)
    if not config["WorkingDir"].startswith("/"):
        raise InvalidArgumentError(place, f"WORKDIR {text!r} must be an absolute path")


def _stop_signal(config: dict[str, Any], text: str, place: str) -> None:
    if not _SIGNAL.fullmatch(text):
        raise InvalidArgumentError(place, f"STOPSIGNAL {text[:40]!r} is no signal; give one like SIGTERM or 15")
    config["StopSignal"] = text


def _env(config: dict[str, Any], text: str, place: str) -> None:
    found = dict(entry.partition("=")[::2] for entry in config.get("Env", []))
    found |= _pairs(text, place)
    config["Env"] = [f"{name}={value}" for name, value in found.items()]


def _label(config: dict[str, Any], text: str, place: str) -> None:
    config["Labels"] = {**config.get("Labels", {}), **_pairs(text, place)}


def _expose(config: dict[str, Any], text: str, place: str) -> None:
    ports = config.setdefault("ExposedPorts", {})
    for word in _words(text, place):
        found = _PORT.fullmatch(word)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not found or not 1 <= first <= last <= 65535:
            raise InvalidArgumentError(place, f"EXPOSE {word[:40]!r} is no port; give one like 80, 53/udp or 8000-8010")
        ports.update({f"{port}/{found[3] or 'tcp'}": {} for port in range(first, last + 1)})


def _volume(config: dict[str, Any], text: str, place: str) -> None:
    paths = _exec_form(text, place)
    paths = _words(text, place) if paths is None else paths
    if not all(path.startswith("/") for path in paths):
        raise InvalidArgumentError(place, f"VOLUME {text[:200]!r} must be absolute paths")
    config.setdefault("Volumes", {}).update({path: {} for path in paths})


_INSTRUCTIONS: Mapping[str, Callable[[dict[str, Any], str, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _text("User"),
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _exec_form(text: str, place: str) -> list[str] | None:
    """Return the words of a JSON array, or None: what is no array of strings is for the shell."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    if any("\0" in word or word != word.encode("utf-8", "replace").decode() for word in words):
        raise InvalidArgumentError(place, "a word has a zero byte or a lone surrogate")
    return words


def _words(text: str, place: str) -> list[str]:
    """Split at blanks that are not quoted, and take the quotes off."""
    if _WORD.sub("", text).strip():
        raise InvalidArgumentError(place, f"{text[:200]!r} has a quote that does not end")
    return [_unquoted(word) for word in _WORD.findall(text)]


def _unquoted(word: str) -> str:
    def plain(found: "re.Match[str]") -> str:
        if found[1] is not None:
            return found[1]
        if found[2] is not None:
            return re.sub(r"\\(.)", r"\1", found[2], flags=re.DOTALL)
        return found[3]

    return _QUOTED.sub(plain, word)


def _pairs(text: str, place: str) -> dict[str, str]:
    """Read `name=value …`, or the old form `name the rest`."""
    words = _WORD.findall(text)
    if words and "=" not in words[0]:
        name, value = _head(text)
        if not value:
            raise InvalidArgumentError(place, f"{text[:200]!r} has no value; write name=value")
        return {_unquoted(name): value}
    found: dict[str, str] = {}
    for word in _words(text, place):
        name, equals, value = word.partition("=")
        if not (equals and name):
            raise InvalidArgumentError(place, f"{word[:200]!r} is not name=value")
        found[name] = value
    return found
