"""What is wrong with one request: collected by all who judge it, told in one answer.

A request is judged where the knowledge is: its form in `server/convert`, what needs neither host nor image in
`pods/admission`, the rest in `engine/plan`. Each of them adds to the same `Problems`, and who acts calls `check` before
anything is made, so that a user needs one round trip however much is wrong.

Invariant: the answer names each problem by its field's path, the CRI's own names from the request down, like
`config.linux.resources.cpu_period`, in the order in which they were found; one sentence a field is enough.
"""

from collections.abc import Iterable

from crishim.errors import InvalidArgumentError, UnimplementedError

MAX_SHOWN = 20
"""Problems named in one message."""


class Problems:
    """Problems found so far in one request."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._wrong = False

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, problem: str) -> None:
        """Note a problem of a field; a field's first one stays."""
        self._found.setdefault(field, problem)
        self._wrong = True

    def lacks(self, field: str, problem: str) -> None:
        """Note that a field asks for what the API has and this version has not."""
        self._found.setdefault(field, problem)

    def extend(self, found: Iterable[tuple[str, str]], prefix: str = "") -> None:
        """Note several (field, problem), their fields below `prefix`."""
        for field, problem in found:
            self.add(f"{prefix}{field}", problem)

    def check(self) -> None:
        """Raise one error for all that was noted, if anything was.

        What is wrong in any version is an InvalidArgumentError. A request that only asks for too much is not wrong, so
        it gets UnimplementedError, as a whole RPC would: critest then skips a spec.
        """
        if not self._found:
            return
        shown = [f"{field}: {problem}" for field, problem in list(self._found.items())[:MAX_SHOWN]]
        if len(self._found) > MAX_SHOWN:
            shown.append(f"and {len(self._found) - MAX_SHOWN} more")
        text = "; ".join(shown)
        if not self._wrong:
            raise UnimplementedError(text)
        first = next(iter(self._found))
        raise InvalidArgumentError(first, text.removeprefix(f"{first}: "))
