"""Runtime handlers: the names that a RuntimeClass may give."""

from collections.abc import Collection

from crishim.problems import Problems


def judge(problems: Problems, field: str, name: str, known: Collection[str]) -> None:
    """Judge the name of a handler; `known` are those that have one, and "" is the default one's."""
    if name and name not in known:
        others = f" beside {', '.join(known)}" if known else ""
        problems.add(
            field,
            f"{name!r} is not configured: give an empty name for the default handler, or put [runtime.handlers.NAME]"
            f" into the configuration{others}",
        )
