"""Checks of single fields, for all subjects of the admission. Each notes at most one problem of its field."""

import re
from collections.abc import Iterable

from crishim.problems import Problems
from crishim.request import IdMapping

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_PATH, _MAX_NAME = 4095, 255  # path_resolution(7)
MAX_ID = 2**32 - 2
"""Highest user or group id; the next one means "no change" to the kernel (chown(2))."""


def c_string(problems: Problems, field: str, value: str) -> None:
    """No NUL: the kernel would read the text up to there only."""
    if "\0" in value:
        problems.add(field, "must not contain a NUL character")


def given(problems: Problems, field: str, value: str, remedy: str = "") -> None:
    """The text must not be empty, and must be a C string."""
    if not value:
        problems.add(field, f"is missing: {remedy}" if remedy else "is missing")
    c_string(problems, field, value)


def c_strings(problems: Problems, field: str, values: Iterable[str]) -> None:
    """A list of C strings."""
    for n, value in enumerate(values):
        c_string(problems, f"{field}[{n}]", value)


def one_line(problems: Problems, field: str, value: str) -> None:
    """No control characters: the text goes into a file of lines."""
    if _CONTROL.search(value):
        problems.add(field, f"must not contain control characters, is {value!r}")


def one_word(problems: Problems, field: str, value: str) -> None:
    """Neither empty nor with white space in it: the text goes between others on a line."""
    if _CONTROL.search(value) or value.split() != [value]:
        problems.add(field, f"must be one word, is {value!r}")


def absolute(problems: Problems, field: str, value: str) -> None:
    """An absolute path that a system call can name."""
    if not value:
        problems.add(field, "is missing: give an absolute path")
    elif not value.startswith("/"):
        problems.add(field, f"must be an absolute path, is {value!r}")
    _nameable(problems, field, value)


def inside(problems: Problems, field: str, value: str) -> None:
    """A relative path that stays below where it starts; "" is fine."""
    if value.startswith("/"):
        problems.add(field, f"must be a relative path, is {value!r}")
    no_climbing(problems, field, value)


def no_climbing(problems: Problems, field: str, value: str) -> None:
    """A path without `..`."""
    if ".." in value.split("/"):
        problems.add(field, f"must not contain '..', is {value!r}")
    _nameable(problems, field, value)


def _nameable(problems: Problems, field: str, value: str) -> None:
    """A path that a system call can name."""
    if len(value.encode()) > _MAX_PATH or any(len(name.encode()) > _MAX_NAME for name in value.split("/")):
        problems.add(field, f"must have at most {_MAX_PATH} bytes, and {_MAX_NAME} in each name")
    c_string(problems, field, value)


def number(problems: Problems, field: str, value: int, low: int, high: int) -> None:
    """A number within bounds."""
    if not low <= value <= high:
        problems.add(field, f"must be {low} to {high}, is {value}")


def ids(problems: Problems, field: str, values: Iterable[int]) -> None:
    """User or group ids."""
    for n, value in enumerate(values):
        number(problems, f"{field}[{n}]", value, 0, MAX_ID)


def id_mappings(problems: Problems, field: str, ranges: Iterable[IdMapping]) -> None:
    """Ranges of ids, each of at least one id and within 32 bits."""
    for n, item in enumerate(ranges):
        if item.length == 0:
            problems.add(f"{field}[{n}].length", "must be at least 1")
        elif max(item.host_id, item.container_id) + item.length - 1 > MAX_ID:
            problems.add(f"{field}[{n}].length", f"reaches beyond the highest id {MAX_ID}")


def unsupported(problems: Problems, field: str, what: str, instead: str) -> None:
    """What the CRI has and this version has not: the one wording for it.

    It is refused, never left out: a container without what was asked for is not the container that was asked for.
    """
    problems.lacks(field, f"not supported yet: {what}; {instead}")
