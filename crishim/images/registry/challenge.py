"""`WWW-Authenticate` headers: text in, challenges out.

Pure. Source: RFC 9110 section 11.6.1 (several challenges may share one header, parameters are tokens or quoted
strings) and distribution's "Token Authentication Specification". Lenient where registries are: a scope may be
absent, hold several scopes separated by spaces, and unknown schemes are skipped.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BLANK = re.compile(r"[ \t,]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge; the scheme and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes asked for, none if the registry names none."""
        return tuple(self.parameters.get("scope", "").split())


def parse(header: str) -> list[Challenge]:
    """Return the challenges of one header value; what cannot be read ends the list."""
    found: list[Challenge] = []
    position = _skip(header, 0)
    while match := _TOKEN.match(header, position):
        scheme = match.group().lower()
        parameters: dict[str, str] = {}
        position = _skip(header, match.end())
        position = _parameters(header, position, parameters)
        found.append(Challenge(scheme, parameters))
    return found


def choose(headers: Iterable[str]) -> Challenge | None:
    """Return the challenge to answer: Bearer before Basic; None if there is neither."""
    challenges = [challenge for header in headers for challenge in parse(header)]
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme and (scheme == "basic" or challenge.parameters.get("realm")):
                return challenge
    return None


def _parameters(header: str, position: int, parameters: dict[str, str]) -> int:
    """Read `name=value` pairs until the next scheme; return the position after them."""
    while match := _TOKEN.match(header, position):
        after = match.end()
        while header[after : after + 1] in {" ", "\t"}:
            after += 1
        if header[after : after + 1] != "=":
            return position  # the next scheme's name
        value_at = after + 1
        while header[value_at : value_at + 1] in {" ", "\t"}:
            value_at += 1
        if quoted := _QUOTED.match(header, value_at):
            value, end = re.sub(r"\\(.)", r"\1", quoted.group(1)), quoted.end()
        elif plain := _TOKEN68.match(header, value_at) or _TOKEN.match(header, value_at):
            value, end = plain.group(), plain.end()
        else:
            return len(header)
        parameters.setdefault(match.group().lower(), value)
        position = _skip(header, end)
    return position


def _skip(header: str, position: int) -> int:
    match = _BLANK.match(header, position)
    return match.end() if match else position
