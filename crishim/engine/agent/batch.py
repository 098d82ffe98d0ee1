"""A batch of system calls, built by name: what an agent or a child will do, as bytes and as something to read.

    batch = Batch("x86_64", SLOT)
    batch.reason("the root: layers and one read/write layer")
    context = batch.call("fsopen", batch.text("overlay"), 1)
    batch.call("fsconfig", context, SET_STRING, batch.text("lowerdir+"), batch.text("layers/1"), 0)

An argument is a number, a `Place` (the address of data in the batch), the `Result` of an earlier call, or the contents
of a place (`Word`, `Half`). Calls go forward only: `other` is a `Label` placed later. Nothing here acts, and the same
calls give the same bytes. Out of scope: which calls a plan needs (`containers`, `processes`, …).
"""

from collections.abc import Mapping, Sequence
from mmap import mmap
from typing import NamedTuple

from crishim.engine.agent.layout import (
    CALL,
    CHILD,
    ELSE,
    END,
    EXPECT,
    HALF,
    INDEX_SHIFT,
    OK,
    OTHER,
    RECORD,
    RESULT,
    WORD,
)
from crishim.linux.seccomp.tables import numbers

_ALL = (1 << 64) - 1
_NO_HINTS: Mapping[int, str] = {}


class Place(NamedTuple):
    """Data of the batch, `offset` bytes from where its data begin."""

    offset: int

    def at(self, more: int) -> "Place":
        """Return the place so many bytes further on."""
        return Place(self.offset + more)


class Result(NamedTuple):
    """What a call gave; `name` is what it is called in print."""

    position: int
    name: str


class Word(NamedTuple):
    """The word at a place, or at an address of the area."""

    where: "Place | int"


class Half(NamedTuple):
    """The half word at a place, or at an address of the area."""

    where: "Place | int"


class Distance(NamedTuple):
    """How far a place is behind an address."""

    where: Place
    start: int


class Param(NamedTuple):
    """A number that is filled in when the batch is used."""

    name: str


class Label:
    """Where calls may be skipped to; `position` is known once it is placed."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = -1


Value = int | Place | Result | Param
Argument = Value | Word | Half | Distance
Expectation = tuple["Place | Result | int", int, int]


class Call:
    """One call as it was asked for."""

    __slots__ = ("allow", "arguments", "expect", "flags", "hints", "name", "other", "reason", "result", "what")

    def __init__(self, name: str, arguments: Sequence[Argument], reason: int) -> None:
        self.name = name
        self.arguments = arguments
        self.reason = reason
        self.allow: Sequence[int] = ()
        self.other: Label | int | None = None
        self.expect: Expectation | None = None
        self.flags = 0
        self.result = ""
        self.what = ""
        self.hints: Mapping[int, str] = _NO_HINTS


class Batch:
    """Builds calls and their data.

    Args:
        machine: as `uname -m` names it.
        base: the address that the batch's first byte will have.
    """

    def __init__(self, machine: str, base: int) -> None:
        self.numbers = numbers(machine)
        self.base = base
        self.calls: list[Call] = []
        self.reasons: list[str] = [""]
        self.titles: list[str] = [""]
        self.stops: dict[str, int] = {}
        self.notes: dict[int, str] = {}
        self.strings: dict[int, bytes] = {}
        self._data = bytearray()
        self._texts: dict[bytes, Place] = {}
        self._words: list[tuple[int, Place | Param | Result | Label]] = []

    # --- data ------------------------------------------------------------------------------------

    def text(self, text: str | bytes) -> Place:
        """Return the place of a string, ended by NUL; equal ones stand there once."""
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        place = self._texts.get(raw)
        if place is None:
            place = self._texts[raw] = Place(len(self._data))
            self._data += raw + b"\0"
            self.strings[place.offset] = raw
        return place

    def data(self, content: bytes, note: str = "") -> Place:
        """Return the place of bytes, aligned to a word; `note` is how they are printed."""
        self._data += bytes(-len(self._data) % 8)
        place = Place(len(self._data))
        self._data += content
        if note:
            self.notes[place.offset] = note
        return place

    def room(self, size: int) -> Place:
        """Return the place of so many zero bytes, for the kernel to fill."""
        return self.data(bytes(size))

    def words(self, *values: "Value | Label", note: str = "") -> Place:
        """Return the place of an array or structure of 64-bit members, which may be addresses.

        A `Result` stands for the address of that result, a `Label` for that of the call.
        """
        place = self.data(bytes(8 * len(values)), note)
        for number, value in enumerate(values):
            where = place.offset + 8 * number
            if isinstance(value, int):
                self._data[where : where + 8] = (value & _ALL).to_bytes(8, "little")
            else:
                self._words.append((where, value))
        return place

    # --- calls -----------------------------------------------------------------------------------

    def reason(self, text: str, title: str = "") -> None:
        """Say what the calls from here on are for; `title` is what an error message names instead of the call."""
        if self.reasons[-1] != text:
            self.reasons.append(text)
            self.titles.append(title)

    def label(self) -> Label:
        """Place a new label here: at the next call."""
        return self.place(Label())

    def place(self, label: Label) -> Label:
        """Place a label that earlier calls name."""
        label.position = len(self.calls)
        return label

    def call(
        self,
        name: str,
        *arguments: Argument,
        result: str = "",
        what: str = "",
        allow: Sequence[int] = (),
        other: Label | None = None,
        expect: Expectation | None = None,
        hints: Mapping[int, str] | None = None,
    ) -> Result:
        """Add a call.

        Args:
            name: of the call; the kernel's.
            arguments: up to six.
            result: how its result is called in print.
            what: the object that an error message names, where it is not among the arguments.
            allow: up to four errnos that are no failure.
            other: where to go on after one of these; None is the next call.
            expect: (where, mask, value): a failure unless the word there, masked, has this value after the call.
            hints: what an errno means here, for the user; 0 stands for an expectation that is not met.
        """
        call = Call(name, arguments, len(self.reasons) - 1)
        call.result, call.what = result, what
        call.allow, call.other = allow, other
        call.hints = hints or _NO_HINTS
        if expect is not None:
            call.expect = expect
            call.flags = EXPECT
        self.calls.append(call)
        return Result(len(self.calls) - 1, result)

    def then(self, label: Label | int) -> None:
        """Go on at the label or address if the last call succeeds, and at the next one after an errno it allows."""
        self.calls[-1].flags |= OK
        self.calls[-1].other = label

    def otherwise(self, label: Label) -> None:
        """Go on at the label if the last call's expectation is not met."""
        self.calls[-1].flags |= ELSE
        self.calls[-1].other = label

    def child(self, goes_on: int | Label) -> None:
        """Let the process that the last call makes go on at this address or label."""
        self.calls[-1].flags |= CHILD
        self.calls[-1].other = goes_on

    def become_agent(self) -> None:
        """End a child's batch: from here on it is an agent."""
        self.calls.append(Call("", (), len(self.reasons) - 1))
        self.calls[-1].flags = CHILD

    def stop(self, name: str, socket: int, number: int = 0) -> Place:
        """Tell the keeper that this point is reached, and wait until it says where to go on.

        By itself that is the next call; the keeper may have written another address into the record meanwhile. Returns
        the place of the word that is told: the number.
        """
        word = self.words(number)
        self.call("write", socket, word, 8, what=f"stop {name}")
        gone_on = Label()
        told = Result(len(self.calls), "told")
        self.call("read", socket, word, 8, result="told", what=f"go on from {name}", expect=(told, _ALL, 8))
        self.stops[name] = len(self.calls) - 1
        self.then(gone_on)
        self.place(gone_on)
        return word

    # --- the result ------------------------------------------------------------------------------

    def address(self, index: int) -> int:
        """Return the address of a call's record."""
        return self.base + index * RECORD

    def offset_of_other(self, stop: str) -> int:
        """Return where in the batch the address stands at which a child goes on after a stop."""
        return self.stops[stop] * RECORD + OTHER

    def offset_of(self, place: Place) -> int:
        """Return where in the finished batch a place is."""
        return (len(self.calls) + 1) * RECORD + place.offset

    def finish(self) -> "Blob":
        """Return the batch's bytes: the records, an END, the data."""
        count = len(self.calls)
        data = self.base + (count + 1) * RECORD
        params: dict[str, list[int]] = {}
        out = bytearray()
        for index, call in enumerate(self.calls):
            out += self._record(index, call, data, params)
        out += CALL.pack(END, count << INDEX_SHIFT, *([0] * 6), 0, 0, 0, 0, 0, 0, 0, 0, 0)
        start = len(out)
        out += self._data
        for where, value in self._words:
            if isinstance(value, Param):
                params.setdefault(value.name, []).append(start + where)
                continue
            if isinstance(value, Place):
                address = data + value.offset
            elif isinstance(value, Result):
                address = self.address(value.position) + RESULT
            else:
                address = self.address(value.position)
            out[start + where : start + where + 8] = address.to_bytes(8, "little")
        return Blob(bytes(out), params)

    def _record(self, index: int, call: Call, data: int, params: dict[str, list[int]]) -> bytes:
        control = call.flags | index << INDEX_SHIFT
        values = [0, 0, 0, 0, 0, 0]
        for number, argument in enumerate(call.arguments):
            if isinstance(argument, int):
                values[number] = argument & _ALL
            elif isinstance(argument, Place):
                values[number] = data + argument.offset
            elif isinstance(argument, Result):
                control |= WORD << 2 * number
                values[number] = self.address(argument.position) + RESULT
            elif isinstance(argument, Distance):
                values[number] = data + argument.where.offset - argument.start
            elif isinstance(argument, Param):
                params.setdefault(argument.name, []).append(index * RECORD + 8 + 8 * number)
            else:
                control |= (WORD if isinstance(argument, Word) else HALF) << 2 * number
                at = argument.where
                values[number] = at if isinstance(at, int) else data + at.offset
        other = call.other
        after = index + 1 if other is None else other.position if isinstance(other, Label) else -1
        target = other if isinstance(other, int) else self.address(after)
        if isinstance(other, Label) and not index < after <= len(self.calls):
            raise ValueError(f"call {index} ({call.name}) goes on at {after}: calls go forward only")
        expected: Place | Result | int
        expected, mask, value = call.expect or (0, 0, 0)
        if isinstance(expected, Place):
            where = data + expected.offset
        else:
            where = expected if isinstance(expected, int) else self.address(expected.position) + RESULT
        errnos = (*call.allow, 0, 0, 0, 0)[:4]
        number = self.numbers[call.name] if call.name else END
        return CALL.pack(number, control, *values, 0, *errnos, target, where, mask, value)


class Blob(NamedTuple):
    """A batch's bytes, ready but for what differs from use to use.

    `params` holds the offsets of the words that have to be filled in, by name.
    """

    content: bytes
    params: dict[str, list[int]]

    def fill(self, ids: Sequence[tuple[bytes, bytes]] = (), /, **numbers: int) -> bytes:
        """Return the bytes with numbers in their places, and with ids for others of the same length.

        Raises:
            KeyError: a number is missing or unknown.
            ValueError: an id has another length, which would move everything behind it.
        """
        content = self.content
        for old, new in ids:
            if len(old) != len(new):
                raise ValueError(f"{new!r} cannot stand for {old!r}: it has another length")
            content = content.replace(old, new)
        if self.params.keys() != numbers.keys():
            raise KeyError(*(self.params.keys() ^ numbers.keys()))
        if not numbers:
            return content
        out = bytearray(content)
        for name, value in numbers.items():
            word = (value & _ALL).to_bytes(8, "little")
            for offset in self.params[name]:
                out[offset : offset + 8] = word
        return bytes(out)


class Record(NamedTuple):
    """A record as it stands in an area: what was to be done, and what came of it."""

    number: int
    control: int
    arguments: tuple[int, ...]
    result: int
    errnos: tuple[int, ...]
    other: int
    expect: tuple[int, int, int]

    @property
    def position(self) -> int:
        """Which call of its batch it is."""
        return self.control >> INDEX_SHIFT

    @property
    def errno(self) -> int:
        """The errno, or 0 where the call itself succeeded."""
        return -self.result if -4096 < self.result < 0 else 0


def decode(content: bytes | mmap, offset: int = 0) -> Record:
    """Return the record at an offset of a batch, or of a child's report."""
    fields = CALL.unpack_from(content, offset)
    return Record(fields[0], fields[1], fields[2:8], fields[8], fields[9:13], fields[13], fields[14:17])


def records(content: bytes) -> list[Record]:
    """Return the records of a batch up to its END."""
    found = []
    offset = 0
    while (record := decode(content, offset)).number != END:
        found.append(record)
        offset += RECORD
    return found
