"""The progress of pulls, pushes and archives on standard error: bars where a person watches, else a line per event.

rich is imported only where standard error is a terminal. Invariant: standard output is never written to here.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim.cli import table
from crishim.errors import InternalError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WORDS = {
    pb.STATE_WAITING: "waiting",
    pb.STATE_TRANSFERRING: "transferring",
    pb.STATE_UNPACKING: "unpacking",
    pb.STATE_DONE: "done",
    pb.STATE_PRESENT: "already there",
    pb.STATE_MOUNTED: "mounted from another repository",
    pb.STATE_SKIPPED: "skipped (foreign)",
}
_ENDS = frozenset({pb.STATE_DONE, pb.STATE_PRESENT, pb.STATE_MOUNTED, pb.STATE_SKIPPED})
_QUIET = frozenset({pb.STATE_UNSPECIFIED, pb.STATE_WAITING, pb.STATE_TRANSFERRING, pb.STATE_UNPACKING})


class Display(Protocol):
    """Shows items that changed."""

    def show(self, items: Iterable[pb.Item]) -> None:
        """Show them."""


class Nothing:
    """For `--quiet`."""

    def show(self, items: Iterable[pb.Item]) -> None:
        """Show nothing."""


class Lines:
    """One line when an item has come to its end: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, items: Iterable[pb.Item]) -> None:
        """Write a line for each item that is done."""
        for item in items:
            if item.state not in _QUIET:
                size = f", {table.size(item.total)}" if item.total else ""
                print(f"{label(item)}: {WORDS[item.state]}{size}", file=self._stream)


class Bars:
    """One bar an item."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def show(self, items: Iterable[pb.Item]) -> None:
        """Move the bars; one that has ended is full."""
        for item in items:
            task = self._tasks.get(item.id)
            if task is None:
                task = self._tasks[item.id] = self._bars.add_task(label(item), total=item.total or None, state="")
            ended = item.state in _ENDS
            self._bars.update(
                task,
                total=(item.total or 1) if ended else (item.total or None),
                completed=(item.total or 1) if ended else item.current,
                state=WORDS.get(item.state, ""),
            )


def label(item: pb.Item) -> str:
    """Return what an item is called; what has no digest is called by what it is."""
    return item.kind if item.id == item.kind else f"{item.kind} {table.short(item.id)}"


def follow(answers: Iterable[Any], display: Display) -> Any:
    """Show the progress of a stream of answers to its end, and return its result."""
    result = None
    for answer in answers:
        if answer.WhichOneof("event") == "progress":
            display.show(answer.progress.items)
        else:
            result = answer.result
    if result is None:
        raise InternalError("the daemon has ended the call without a result")
    return result


@contextlib.contextmanager
def display(*, quiet: bool, stream: TextIO | None = None) -> Iterator[Display]:
    """Return what shows progress on standard error."""
    stream = stream or sys.stderr
    if quiet:
        yield Nothing()
    elif not stream.isatty():
        yield Lines(stream)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[state]}"))
        with Progress(*columns, console=Console(file=stream)) as bars:
            yield Bars(bars)
