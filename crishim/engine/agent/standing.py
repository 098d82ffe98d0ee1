"""Where a child is among its calls, as far as the kernel and its slot tell; for what is said of one that hangs or died.

The kernel says which call a process is in, and with which arguments (/proc/<pid>/syscall); since all addresses of a
batch are fixed, that is enough to know the record. A record's result stands in the slot once the call has come back,
but where it is 0 it looks like none. Out of scope: what is said (`watching`).

Sources: proc_pid_syscall(5); proc_pid_stat(5) for the letters of states.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crishim.engine.agent.batch import Record
from crishim.engine.agent.layout import HALF, WORD
from crishim.linux.processes import STATE, stat_fields

_FIELDS = 9  # number, six arguments, stack pointer, program counter


class Standing(NamedTuple):
    """The call that a process is in."""

    number: int
    arguments: tuple[int, ...]


def standing(pid: int) -> Standing | None:
    """Return the call that a process is in; None if that cannot be told: it runs, has ended, or nobody may look."""
    try:
        with open(f"/proc/{pid}/syscall", "rb") as file:
            return parse(file.read())
    except OSError:
        return None


def parse(line: bytes) -> Standing | None:
    """Return the call of a line of /proc/<pid>/syscall."""
    words = line.split()
    if len(words) != _FIELDS:  # "running", or "-1" with two addresses: in no call
        return None
    try:
        return Standing(int(words[0]), tuple([int(word, 16) for word in words[1:7]]))
    except ValueError:
        return None


def find(records: Sequence[Record], where: Standing) -> int | None:
    """Return which of a child's records the call is: the next one after those that have come back, or any.

    Equal calls may stand there more than once. One that was sent back to read on has results of the last time, too.
    """
    found = [index for index, record in enumerate(records) if _is(record, where)]
    before = last(records)
    return next((index for index in found if index > before), found[-1] if found else None)


def last(records: Sequence[Record]) -> int:
    """Return the last record whose result is there and not 0; -1 if there is none."""
    return max([index for index, record in enumerate(records) if record.result], default=-1)


def _is(record: Record, where: Standing) -> bool:
    if record.number != where.number:
        return False
    for index, (argument, found) in enumerate(zip(record.arguments, where.arguments, strict=True)):
        if not record.control >> 2 * index & (WORD | HALF) and argument != found:
            return False
    return True


def stopped(pid: int) -> str:
    """Return what has stopped a process, "" if nothing has."""
    try:
        return {b"T": "stopped by a signal", b"t": "stopped by a tracer"}.get(stat_fields(pid)[STATE], "")
    except (OSError, ValueError):
        return ""
