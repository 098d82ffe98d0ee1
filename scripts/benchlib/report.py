"""The report: a table for the person who ran it, and a document of a fixed shape for programs.

The document: `{"rows": [{"name", "unit", "budget", "met", "ratio", "systems": {name: {"min", "median", "p99", "max",
"n"}}}]}`. A row that was not measured stands there with no systems; a budget or verdict that cannot be known is null.
"""

from collections.abc import Iterable
from typing import Any

from scripts.benchlib.measure import Samples, Summary
from scripts.benchlib.rows import SUBJECT, Row, Verdict, judge

COLUMNS = ("row", "system", "min", "median", "p99", "max", "n", "ratio", "budget", "met")


def document(rows: Iterable[Row], samples: Samples) -> dict[str, Any]:
    """Return the JSON document of the rows."""
    return {"rows": [_entry(row, samples.of(row.name)) for row in rows]}


def table(rows: Iterable[Row], samples: Samples) -> str:
    """Return the table, then the notes."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        lines += _lines(row, samples.of(row.name))
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    text = ["  ".join(_padded(cell, widths[n], n) for n, cell in enumerate(line)).rstrip() for line in lines]
    text.insert(1, "-" * max(len(line) for line in text))
    return "\n".join([*text, *(f"note: {note}" for note in samples.notes)])


def _entry(row: Row, systems: dict[str, Summary]) -> dict[str, Any]:
    verdict = judge(row, systems)
    return {
        "name": row.name,
        "unit": row.unit,
        "budget": _rounded(verdict.budget),
        "met": verdict.met,
        "ratio": _rounded(verdict.ratio),
        "systems": {name: _cells(summary) for name, summary in systems.items()},
    }


def _cells(summary: Summary) -> dict[str, Any]:
    figures = {"min": summary.least, "median": summary.median, "p99": summary.p99, "max": summary.largest}
    return {name: _rounded(value) for name, value in figures.items()} | {"n": summary.count}


def _lines(row: Row, systems: dict[str, Summary]) -> list[tuple[str, ...]]:
    verdict = judge(row, systems)
    names = sorted(systems, key=lambda name: (name != SUBJECT, name))
    if not names:
        return [(f"{row.name} [{row.unit}]", "not measured", *[""] * (len(COLUMNS) - 2))]
    lines = []
    for number, name in enumerate(names):
        summary = systems[name]
        figures = (summary.least, summary.median, summary.p99, summary.largest)
        head = f"{row.name} [{row.unit}]" if number == 0 else ""
        tail = _tail(row, verdict) if name == SUBJECT else (_times(row, systems, name), "", "")
        lines.append((head, name, *(_figure(value) for value in figures), str(summary.count), *tail))
    return lines


def _tail(row: Row, verdict: Verdict) -> tuple[str, str, str]:
    sign = ">=" if row.more else "<="
    budget = "" if verdict.budget is None else f"{sign} {_figure(verdict.budget)}"
    if row.multiple is not None:
        budget += f" ({row.multiple:g}x {row.reference})"
    if row.factor is not None:
        budget += f"{', ' if budget else ''}{row.factor:.3g}x better than {row.reference}"
    return "", budget.strip(), {True: "yes", False: "NO", None: ""}[verdict.met]


def _times(row: Row, systems: dict[str, Summary], name: str) -> str:
    """Say how crishim stands to this system, in words that need no key."""
    own = systems.get(SUBJECT)
    if own is None or not own.median or not systems[name].median:
        return ""
    if row.more:
        return f"crishim {own.median / systems[name].median:.2f}x as much"
    return f"crishim {own.median / systems[name].median:.2f}x" if row.multiple else _better(own, systems[name])


def _better(own: Summary, other: Summary) -> str:
    times = other.median / own.median
    return f"crishim {times:.1f}x less" if times >= 1 else f"crishim {1 / times:.1f}x more"


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _padded(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if COLUMNS[column] in {"min", "median", "p99", "max", "n"} else cell.ljust(width)
