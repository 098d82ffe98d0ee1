"""Tables, sizes and ages for people; JSON for programs."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from crishim.clock import moment

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_AGES = ((365 * 86400, "year"), (30 * 86400, "month"), (7 * 86400, "week"), (86400, "day"), (3600, "hour"))
_SHORT = 12


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, three blanks between them, without blanks at the lines' ends."""
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def document(value: Any) -> str:
    """Return JSON with an indent, as all our commands print it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def printable(text: str) -> str:
    """Return `text` without what could move a terminal's cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def size(count: int) -> str:
    """Return bytes with three digits and a decimal unit, like 12.3MB."""
    value = float(count)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 99.95 else f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError


def age(created: str, now: datetime) -> str:
    """Return how long ago an RFC 3339 time was, like `3 weeks ago`; empty if it is none."""
    then = moment(created)
    if then is None:
        return ""
    seconds = (now - then).total_seconds()
    for length, word in _AGES:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    if seconds >= 60:
        count = int(seconds // 60)
        return f"{count} minute{'s' if count > 1 else ''} ago"
    return "now" if seconds >= 0 else "in the future"


def short(digest: str) -> str:
    """Return the twelve digits by which people know an image."""
    return digest.partition(":")[2][:_SHORT] or digest
