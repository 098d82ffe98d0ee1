"""What protobuf cannot tell of a request's fields: that one is missing, that a number is a known value of its enum.

Nothing else is judged here (`pods/admission` does). Paths are the CRI's own names from the request down.
"""

from enum import IntEnum
from typing import Any, TypeVar

from crishim.errors import InvalidArgumentError
from crishim.problems import Problems

E = TypeVar("E", bound=IntEnum)


def choice(problems: Problems, field: str, kind: type[E], value: int) -> E:
    """Return the value of an enum; an unknown one is a problem, and reads as the first."""
    options = tuple(kind)
    if value in {int(option) for option in options}:
        return kind(value)
    problems.add(field, f"must be {' or '.join(option.name for option in options)}, is {value}")
    return options[0]


def optional_id(message: Any, name: str) -> int | None:
    """Return an id in a wrapper message that may be absent."""
    return int(getattr(message, name).value) if message.HasField(name) else None


def required(message: Any, name: str) -> Any:
    """Return a text or message field of a request that must be there.

    Raises:
        InvalidArgumentError: it is empty.
    """
    value = getattr(message, name)
    if not (value if isinstance(value, str) else message.HasField(name)):
        raise InvalidArgumentError(name, "is missing")
    return value
