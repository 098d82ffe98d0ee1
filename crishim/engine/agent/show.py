"""A batch as something to read: each call in strace's form, under the reason it is made for. Pure."""

import errno

from crishim.engine.agent.batch import Argument, Batch, Call, Distance, Label, Param, Place, Result, Word
from crishim.engine.agent.layout import CHILD, ELSE, OK

_AT_FDCWD = -100
_PLAIN = 4096


def show(batch: Batch) -> list[str]:
    """Return a batch's lines: `# reason`, then its calls, then an empty line."""
    lines: list[str] = []
    labels = {
        call.other.position: f"L{call.other.position}"
        for call in batch.calls
        if isinstance(call.other, Label) and call.other.position >= 0
    }
    names = _result_names(batch)
    reason = 0
    for index, call in enumerate(batch.calls):
        if call.reason != reason:
            reason = call.reason
            lines += ["", f"# {batch.reasons[reason]}"] if lines else [f"# {batch.reasons[reason]}"]
        if index in labels:
            lines.append(f"{labels[index]}:")
        lines.append("  " + _line(batch, index, call, names))
    if len(batch.calls) in labels:
        lines.append(f"{labels[len(batch.calls)]}:")
    return lines


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


def _line(batch: Batch, index: int, call: Call, names: dict[int, str]) -> str:
    if not call.name:
        return "(become an agent)"
    text = f"{call.name}({', '.join([_argument(batch, argument, names) for argument in call.arguments])})"
    if index in names:
        text += f" = {names[index]}"
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
