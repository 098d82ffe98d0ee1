"""Checks of request fields, and the collector that reports every problem of a request at once by its field's path.

Paths are the CRI's own names from the request down, like `config.linux.resources.cpu_period`. What protobuf cannot tell
(missing) and what no state could make right (a negative limit, a path that climbs out) is found here; what needs
the host, the image or the store is the planner's and the pods' to judge.
"""

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeVar

from crishim.errors import InvalidArgumentError

E = TypeVar("E", bound=IntEnum)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_ID = 2**32 - 2
"""Highest user or group id; the next one means "no change" to the kernel (chown(2))."""
MAX_SHOWN = 20
"""Problems named in one message."""


class Problems:
    """Problems found so far in one request."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, field: str, problem: str) -> None:
        """Note a problem."""
        self._found.append((field, problem))

    def check(self) -> None:
        """Raise InvalidArgumentError if there are any: one by its field, several in one sentence each."""
        if len(self._found) == 1:
            raise InvalidArgumentError(*self._found[0])
        if self._found:
            shown = [f"{field}: {problem}" for field, problem in self._found[:MAX_SHOWN]]
            if len(self._found) > MAX_SHOWN:
                shown.append(f"and {len(self._found) - MAX_SHOWN} more")
            raise InvalidArgumentError("", "; ".join(shown))

    # --- single fields ------------------------------------------------------------------------
    def given(self, field: str, value: str) -> str:
        """The text must not be empty, and must be a C string."""
        if not value:
            self.add(field, "is missing")
        return self.c_string(field, value)

    def c_string(self, field: str, value: str) -> str:
        """No NUL: the kernel would read the text up to there only."""
        if "\0" in value:
            self.add(field, "must not contain a NUL character")
        return value

    def one_line(self, field: str, value: str) -> str:
        """No control characters: the text goes into a file of lines."""
        if _CONTROL.search(value):
            self.add(field, f"must not contain control characters, is {value!r}")
        return value

    def absolute(self, field: str, value: str, *, optional: bool = False) -> str:
        """An absolute path."""
        if not value:
            if not optional:
                self.add(field, "is missing")
        elif not value.startswith("/"):
            self.add(field, f"must be an absolute path, is {value!r}")
        return self.c_string(field, value)

    def inside(self, field: str, value: str) -> str:
        """A relative path that stays below where it starts."""
        if value.startswith("/"):
            self.add(field, f"must be a relative path, is {value!r}")
        return self.no_climbing(field, value)

    def no_climbing(self, field: str, value: str) -> str:
        """A path without `..`."""
        if ".." in value.split("/"):
            self.add(field, f"must not contain '..', is {value!r}")
        return self.c_string(field, value)

    def number(self, field: str, value: int, low: int, high: int) -> int:
        """A number within bounds."""
        if not low <= value <= high:
            self.add(field, f"must be {low} to {high}, is {value}")
        return value

    def not_negative(self, field: str, value: int) -> int:
        """A number from 0 on."""
        if value < 0:
            self.add(field, f"must not be negative, is {value}")
        return value

    def choice(self, field: str, kind: type[E], value: int, allowed: Iterable[E] | None = None) -> E:
        """A value of an enum, or of the part of it that makes sense here."""
        options = tuple(kind if allowed is None else allowed)
        if value in {int(option) for option in options}:
            return kind(value)
        try:
            shown = kind(value).name
        except ValueError:
            shown = str(value)
        self.add(field, f"must be {' or '.join(option.name for option in options)}, is {shown}")
        return options[0]

    def ids(self, field: str, values: Iterable[int]) -> tuple[int, ...]:
        """User or group ids."""
        return tuple(self.number(f"{field}[{n}]", value, 0, MAX_ID) for n, value in enumerate(values))

    def optional_id(self, message: Any, name: str, path: str) -> int | None:
        """An id in a wrapper message that may be absent."""
        if not message.HasField(name):
            return None
        return self.number(f"{path}.{name}", int(getattr(message, name).value), 0, MAX_ID)


def required(message: Any, name: str) -> Any:
    """Return a text or message field of a request that must be there.

    Raises:
        InvalidArgumentError: it is empty.
    """
    value = getattr(message, name)
    if not (value if isinstance(value, str) else message.HasField(name)):
        raise InvalidArgumentError(name, "is missing")
    return value


def seconds(message: Any, name: str) -> int:
    """Return a time in seconds from 0 on."""
    value = int(getattr(message, name))
    if value < 0:
        raise InvalidArgumentError(name, f"must be a number of seconds from 0 on, is {value}")
    return value
