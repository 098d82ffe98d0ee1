"""A batch as something to read: each call in strace's form, under the reason it is made for. Pure."""

import errno
from collections.abc import Sequence

from crishim.engine.agent.batch import Argument, Batch, Call, Distance, Label, Param, Place, Result, Word
from crishim.engine.agent.layout import CHILD, ELSE, OK

_AT_FDCWD = -100
_PLAIN = 4096
_OCTAL = {"mkdirat": (2,), "mknodat": (2,), "umask": (0,), "openat": (2, 3)}
_VARYING = {"rt_sigaction": 0, "prctl": 1}
"""Calls that come in long rows, and which argument tells them apart."""


def show(batch: Batch) -> list[str]:
    """Return a batch's lines: `# reason`, its calls, an empty line. Calls that differ by one number share a line."""
    lines: list[str] = []
    labels = {call.other.position for call in batch.calls if isinstance(call.other, Label)}
    names = _result_names(batch)
    reason = 0
    position = 0
    while position < len(batch.calls):
        call = batch.calls[position]
        if call.reason != reason:
            reason = call.reason
            lines += ["", f"# {batch.reasons[reason]}"] if lines else [f"# {batch.reasons[reason]}"]
        if position in labels:
            lines.append(f"L{position}:")
        run = _run(batch, position, labels, names)
        lines.append(f"  {_line(batch, position, call, names, run)}")
        position += max(len(run), 1)
    if position in labels:
        lines.append(f"L{position}:")
    return lines


def _run(batch: Batch, start: int, labels: set[int], names: dict[int, str]) -> list[int]:
    """Return the numbers of the calls from here on that differ in one argument only, and that one is a number."""
    first = batch.calls[start]
    place = _VARYING.get(first.name)
    if place is None:
        return []
    numbers = []
    for position in range(start, len(batch.calls)):
        call = batch.calls[position]
        same = (call.name, call.reason, call.allow) == (first.name, first.reason, first.allow)
        if not same or position in names or (position in labels and position > start):
            break
        if _but(call.arguments, place) != _but(first.arguments, place):
            break
        number = call.arguments[place]
        assert isinstance(number, int)
        numbers.append(number)
    return numbers


def _but(arguments: Sequence[Argument], place: int) -> tuple[Argument, ...]:
    return (*arguments[:place], *arguments[place + 1 :])


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `1-8,10`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join([str(low) if low == high else f"{low}-{high}" for low, high in parts])


def _result_names(batch: Batch) -> dict[int, str]:
    """Return what results that are used later are called: by their name, with a number where it is not the only one."""
    used = {argument.position for call in batch.calls for argument in call.arguments if isinstance(argument, Result)}
    used |= {call.expect[0].position for call in batch.calls if call.expect and isinstance(call.expect[0], Result)}
    names: dict[int, str] = {}
    count: dict[str, int] = {}
    for index in sorted(used):
        name = batch.calls[index].result or "fd"
        count[name] = count.get(name, 0) + 1
        names[index] = name if count[name] == 1 else f"{name}{count[name]}"
    return names


def _line(batch: Batch, position: int, call: Call, names: dict[int, str], run: Sequence[int]) -> str:
    if not call.name:
        return "(become an agent)"
    words = [_argument(batch, argument, names) for argument in call.arguments]
    for place in _OCTAL.get(call.name, ()):
        value = call.arguments[place]
        words[place] = f"{value:#o}" if isinstance(value, int) else words[place]
    if len(run) > 1:
        words[_VARYING[call.name]] = f"{{{_ranges(run)}}}"
    text = f"{call.name}({', '.join(words)})"
    if position in names:
        text += f" = {names[position]}"
    notes = []
    if call.allow:
        errnos = "|".join([_errno(number) for number in call.allow])
        goes = "" if call.flags & (OK | CHILD) or not isinstance(call.other, Label) else f" → L{call.other.position}"
        notes.append(f"{errnos}{goes}")
    if call.flags & OK and isinstance(call.other, Label):
        notes.append(f"ok → L{call.other.position}")
    if call.flags & CHILD:
        notes.append("the child goes on with its own calls")
    if call.expect is not None:
        where, mask, value = call.expect
        seen = names.get(where.position, "result") if isinstance(where, Result) else "there"
        other = f", else → L{call.other.position}" if call.flags & ELSE and isinstance(call.other, Label) else ""
        notes.append(f"expect {seen} & {mask:#x} == {value:#x}{other}")
    return f"{text}  [{'; '.join(notes)}]" if notes else text


def _argument(batch: Batch, argument: Argument, names: dict[int, str]) -> str:
    if isinstance(argument, int):
        return _number(argument)
    if isinstance(argument, Place):
        if argument.offset in batch.notes:
            return batch.notes[argument.offset]
        if argument.offset in batch.strings:
            return '"' + batch.strings[argument.offset].decode("utf-8", "backslashreplace") + '"'
        return f"buffer+{argument.offset:#x}"
    if isinstance(argument, Result):
        return names[argument.position]
    if isinstance(argument, Param):
        return f"<{argument.name}>"
    if isinstance(argument, Distance):
        return f"buffer+{argument.where.offset:#x}"
    where = argument.where
    kind = "word" if isinstance(argument, Word) else "half"
    return f"{kind}@{where:#x}" if isinstance(where, int) else f"{kind}@buffer+{where.offset:#x}"


def _number(value: int) -> str:
    if value == _AT_FDCWD:
        return "AT_FDCWD"
    return str(value) if -_PLAIN < value < _PLAIN else f"{value:#x}"


def _errno(number: int) -> str:
    return errno.errorcode.get(number, str(number))
