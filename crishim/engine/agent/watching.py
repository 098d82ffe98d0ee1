"""Following one start from its birth to its program, or to what failed; sans-I/O but for the start's own two files.

The keeper's end of the report socket says one of four things: a word (the child has stopped and waits for its ids), a
message with a descriptor (a terminal's master), one record (a call failed, or none of the candidates ran), several
records (what each candidate said), and its end: the program runs, if nothing had failed and the process is one that
exec'd. Nobody trusts what it says: it only decides about this very start, and what is told to its user.
"""

import binascii
import errno
import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

from crishim.engine.agent import layout, lowering, standing
from crishim.engine.agent.batch import Batch, Call, Record, decode, records
from crishim.engine.agent.passage import AUDIT
from crishim.engine.agent.processes import READ_OFFSET, STOP, WINDOW
from crishim.engine.agent.shapes import Ready
from crishim.engine.agent.ways import NoWayError, Ways
from crishim.engine.users import Identity, UnknownUserError, resolve, usual
from crishim.linux.seccomp.outcome import refusal

MAX_FILE = 1 << 20
"""How much of /etc/passwd or /etc/group is looked at."""
_WORD = bytes(8)
_SLACK = 64 * 1024
"""For groups, of which a file may name many, and the rest of a page."""


_INTERPRETER = "its interpreter (the #! line's, or the dynamic loader) does not exist in the image"
_REFUSES = "its seccomp profile refuses this call"
_KILLS = "its seccomp profile kills the process in this call"
_STRUCK_DUMB = "did not run, and its seccomp profile refuses {}, which would tell why"
_STILL = {"execve": "still opening", "openat": "still opening", "openat2": "still opening"}
_PASSES = frozenset({"clone", "exit_group"})
"""What a process that makes another one in its place does at the end: allowed (`passage`), and of no account."""
_TELLS = frozenset({"faccessat", "write"})
"""What a child does when none of the candidates ran."""
_OUT_OF_MEMORY = "killed: the memory limit of the container or its pod leaves too little for it"


class Failure(NamedTuple):
    """Which call failed, on which object, with which errno (0: not as expected), and why it was made.

    `title` is what the user knows it by, and `hint` what it means; the text is made of these where they are given.
    """

    call: str
    what: str
    errno: int
    reason: str
    title: str = ""
    hint: str = ""

    def __str__(self) -> str:
        error = self.hint or (os.strerror(self.errno).lower() if self.errno else "not as expected")
        return f"{self.title or f'{self.call} {self.what}'.strip()}: {error}"


class Watched:
    """One start.

    Args:
        ready: the child's first batch.
        plan: the JSON form of the ProcessPlan.
        machine: as `uname -m` names it.
        terminal: the standard streams are a terminal.
        own_terminal: and it is to be the controlling one.
    """

    def __init__(
        self, ready: Ready, plan: dict[str, Any], machine: str, *, terminal: bool = False, own_terminal: bool = False
    ) -> None:
        self._ready = ready
        self._first = ready.first
        self._plan = plan
        self._machine = machine
        self._flags = {"terminal": terminal, "own_terminal": own_terminal}
        self._second_at = _page(len(ready.content))
        self.slot_size = _page(self._second_at + lowering.room(plan) + _SLACK)
        self._ways = Ways(machine, ready.first, self._second_at, self.slot_size - self._second_at)
        self._second: lowering.Lowered | None = None
        self._beyond = False
        self._likely: Identity | None = None
        self._ahead: lowering.Lowered | None = None
        self._passwd = b""
        self._group = b""
        self._slot = -1
        self.identity: Identity | None = None
        self.failure: Failure | None = None

    def content(self) -> bytes:
        """Return what is written to the slot before the birth."""
        return self._ready.content

    def bind(self, slot: int) -> None:
        """Take the slot's descriptor (borrowed)."""
        self._slot = slot

    def prepare(self, likely: Identity | None = None) -> None:
        """Compile the second batch for the ids that it will likely be, while the child makes its root.

        Args:
            likely: what the last start of this kind found; by default what most images have for a user of this number.
        """
        self._likely = likely or usual(self._plan["user"])
        if self._likely is not None:
            self._ahead = self._lower(self._likely, self.slot_size)

    def heard(self, message: bytes) -> bool:
        """Take a message of the report socket; tell whether the child is to be let go on (eight bytes, any)."""
        if len(message) == 8:
            return not self._beyond and self.failure is None and self._stopped(int.from_bytes(message, "little"))
        found = [decode(message, offset) for offset in range(0, len(message) - layout.RECORD + 1, layout.RECORD)]
        if found and self.failure is None and not self._is_last_word(found[0]):
            self.failure = self._explain(found)
        return False

    def waits(self) -> bool:
        """Tell whether the child has said that it stops, and has not gone on."""
        stop = self._first.batch.stops[STOP]
        return self._result(stop - 1) == len(_WORD) and not self._result(stop)

    def resume(self) -> None:
        """Have the child go on that told a keeper of its stop which then died; the caller lets it go on.

        To be called if it `waits` and, looked at after that, the report socket has nothing to say: the dead keeper has
        heard it. What that one had read of the files is gone, so they are read again.
        """
        batch, look = self._first.batch, self._first.look
        assert look is not None
        if self._word(batch.offset_of_other(STOP)) == layout.SLOT + self._second_at:
            self._beyond = True
            return
        for read in (look.passwd_read, look.group_read):
            os.pwrite(self._slot, _WORD, read.position * layout.RECORD + READ_OFFSET)
        os.pwrite(self._slot, look.again.to_bytes(8, "little"), batch.offset_of_other(STOP))

    def pid_inside(self) -> int:
        """Return the pid of the process that went on in a PID namespace, 0 if there is none (yet)."""
        look = self._first.look
        return self._word(self._first.batch.offset_of(look.pid)) & 0xFFFFFFFF if look is not None else 0

    # --- the stop --------------------------------------------------------------------------------

    def _stopped(self, number: int) -> bool:
        if number in self._ways:
            try:
                self._ways.make(self._slot, number)
            except NoWayError as error:
                self.failure = Failure("", "", errno.ELOOP, "the way to a mount point", error.title, str(error))
                return False
            return True
        batch, look = self._first.batch, self._first.look
        assert look is not None
        more = False
        for name, place, read in (("_passwd", look.passwd, look.passwd_read), ("_group", look.group, look.group_read)):
            size = self._result(read.position)
            known: bytes = getattr(self, name)
            if size > 0 and len(known) < MAX_FILE:
                at = read.position * layout.RECORD + READ_OFFSET
                if self._word(at) == len(known):
                    known += os.pread(self._slot, min(size, WINDOW), batch.offset_of(place))
                    setattr(self, name, known)
                    os.pwrite(self._slot, len(known).to_bytes(8, "little"), at)
                    more = more or size == WINDOW
        other = batch.offset_of_other(STOP)
        if more:
            os.pwrite(self._slot, look.again.to_bytes(8, "little"), other)
            return True
        try:
            self.identity = resolve(self._plan["user"], self._passwd, self._group)
        except UnknownUserError as error:
            text, _, hint = str(error).partition(": ")
            self.failure = Failure("", "", errno.ENOENT, "the user", text, hint)
            return False
        if self._ahead is not None and self.identity == self._likely:
            self._second = self._ahead
        else:
            self._second = self._lower(self.identity, self.slot_size)
        content = self._second.batch.finish().content
        if self._second_at + len(content) > self.slot_size:
            hint = "has too many groups, or too long a home"
            self.failure = Failure("", "", errno.E2BIG, "the user", "the user", hint)
            return False
        os.pwrite(self._slot, content, self._second_at)
        os.pwrite(self._slot, (layout.SLOT + self._second_at).to_bytes(8, "little"), other)
        self._beyond = True
        return True

    def _result(self, position: int) -> int:
        word = self._word(position * layout.RECORD + layout.RESULT)
        return word - (1 << 64) if word >> 63 else word

    def _word(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._slot, 8, offset), "little")

    def _lower(self, identity: Identity, slot_size: int) -> lowering.Lowered:
        base = layout.SLOT + self._second_at
        if self._first.inside:
            cookie = int.from_bytes(os.urandom(8), "little")
            look = self._first.look
            assert look is not None
            pid = layout.SLOT + self._first.batch.offset_of(look.pid)
            return lowering.lower_inside(
                self._machine, base, self._plan, identity, slot_size, pid, cookie, **self._flags
            )
        return lowering.lower(self._machine, base, self._plan, identity, **self._flags)

    def _is_last_word(self, record: Record) -> bool:
        """Tell whether a filter refuses exit_group to a process that has made another one in its place."""
        second = self._second
        if second is None or second.inner is None:
            return False
        batch = self._batch_of(record)
        return batch is second.batch and record.number == batch.numbers["exit_group"]

    # --- one that hangs, or has died -------------------------------------------------------------

    def hanging(self, pid: int) -> Failure:
        """Return the call that a child hangs in; `hint` ends in a way that " after 10 s" can follow.

        Args:
            pid: of the child; the process that went on in its place is found.
        """
        pid = self.pid_inside() or pid
        steps = self._steps()
        where = standing.standing(pid)
        found = standing.find([record for _, record in steps], where) if where is not None else None
        if found is None:
            return self._by_last_result(steps)._replace(errno=errno.ETIMEDOUT, hint="still going on")
        batch, record = steps[found]
        told = self._failure(batch, record)
        waits = batch is self._first.batch and record.position == batch.stops.get(STOP)
        still = "still waiting for its keeper" if waits else _STILL.get(told.call, "still going on")
        hint = standing.stopped(pid) or still
        title = f"{told.title}: {told.call} {told.what}" if told.title else ""
        return told._replace(errno=errno.ETIMEDOUT, title=title, hint=hint)

    def silent(self, status: int, *, out_of_memory: bool = False) -> Failure:
        """Return what to tell of a process that ended before its program ran, and said nothing.

        Args:
            status: 0-255, or 128 + signal.
            out_of_memory: the OOM killer has struck in its control group.
        """
        number = max(status - 128, 0)
        if number in {0, signal.SIGSYS, signal.SIGILL}:  # the last one: exit_group was refused, too
            refused = self._refused(kills=number == signal.SIGSYS)
            if refused is not None:
                return refused
        if number == signal.SIGKILL:
            hint = _OUT_OF_MEMORY if out_of_memory else "killed before it ran its program"
        elif number:
            hint = f"killed by {_name(number)} before it ran its program"
        else:
            hint = f"ended with status {status} before it ran its program, and said nothing"
        told = self._by_last_result(self._steps())
        name = self._plan["argv"][0]
        return Failure(
            "exec", name, errno.EINTR, told.call and f"{told.call} {told.what}".strip(), f"exec {name}", hint
        )

    def _steps(self) -> list[tuple[Batch, Record]]:
        """Return all calls of the child as they stand in its slot; those in private memory as they were."""
        steps = self._in_slot(self._first.batch, 0)
        if self._second is not None:
            steps += self._in_slot(self._second.batch, self._second_at)
            inner = self._second.inner
            if inner is not None:
                steps += [(inner, record) for record in records(inner.finish().content)]
        return steps

    def _in_slot(self, batch: Batch, offset: int) -> list[tuple[Batch, Record]]:
        size = layout.RECORD * len(batch.calls)
        content = os.pread(self._slot, size, offset)
        return [(batch, decode(content, at)) for at in range(0, len(content) - layout.RECORD + 1, layout.RECORD)]

    def _by_last_result(self, steps: list[tuple[Batch, Record]]) -> Failure:
        """Return the last call that is known to have come back."""
        last = standing.last([record for _, record in steps])
        if last < 0:
            return Failure("before its first call", "", 0, "")
        batch, record = steps[last]
        told = self._failure(batch, record)
        return told._replace(call=f"after {told.call}", title="")

    # --- what its filter refuses -----------------------------------------------------------------

    def _filtered(self) -> Iterator[tuple[Batch, Record]]:
        """Yield the calls that are made with the filter in force."""
        second = self._second
        if second is None:
            return
        inside = False
        for batch in (second.batch, second.inner):
            if batch is None:
                continue
            for record in records(batch.finish().content):
                name = batch.calls[record.position].name
                if inside and not (batch is second.batch and second.inner is not None and name in _PASSES):
                    yield batch, record
                inside = inside or name == "seccomp"

    def _refused(self, *, kills: bool) -> Failure | None:
        """Return the first call that the filter refuses, and after which the child is not heard any more."""
        for batch, record in self._filtered():
            found = refusal(self._filter(), record.number, AUDIT[self._machine], record.arguments)
            if found is None or (kills and not found.kills):
                continue
            call = batch.calls[record.position]
            if call.name != "execve" and not found.kills and found.errno in call.allow:
                continue
            return self._of_filter(batch, call, found.errno, _KILLS if found.kills else _REFUSES)
        return None

    def _of_filter(self, batch: Batch, call: Call, number: int, hint: str) -> Failure:
        reason = batch.reasons[call.reason]
        if call.name in _TELLS:
            name = self._plan["argv"][0]
            return Failure("exec", name, number, reason, "", _STRUCK_DUMB.format(call.name))
        return Failure(call.name, call.what, number, reason, "", hint)

    def _refuses(self, batch: Batch, record: Record) -> bool:
        """Tell whether what a call gave is what the filter gives for it."""
        mine = next((one for by, one in self._filtered() if by is batch and one.position == record.position), None)
        if mine is None:
            return False
        found = refusal(self._filter(), mine.number, AUDIT[self._machine], mine.arguments)
        return found is not None and not found.kills and found.errno == record.errno

    def _filter(self) -> bytes:
        return binascii.a2b_base64(self._plan["seccomp"])

    # --- what failed -----------------------------------------------------------------------------

    def _explain(self, found: list[Record]) -> Failure:
        """Return what to tell of failed calls: of candidates, EACCES before what the last one said (execvp(3))."""
        batch = self._batch_of(found[0])
        if batch is None:  # of a second batch that a keeper wrote which is dead
            return Failure("exec", "", found[0].errno, "a call after the ids were known")
        if found[0].position < len(batch.calls) and self._refuses(batch, found[0]):
            return self._of_filter(batch, batch.calls[found[0].position], found[0].errno, _REFUSES)
        if len(found) == 1:
            return self._failure(batch, found[0])
        name = os.fsdecode(self._plan["argv"][0])
        executed = [record for record in found if record.number == batch.numbers["execve"]]
        if len(executed) == 1:
            there = found[-1].result == 0 and executed[0].errno == errno.ENOENT
            hint = _INTERPRETER if there else ""
            return Failure("exec", name, executed[0].errno, "the program", hint=hint)
        refused = [record for record in executed if record.errno == errno.EACCES]
        if refused:
            return self._failure(batch, refused[0])._replace(call="exec")
        return Failure("exec", name, errno.ENOENT, "the program", hint="executable file not found in $PATH")

    def _failure(self, batch: Batch, record: Record) -> Failure:
        if record.position >= len(batch.calls):
            return Failure("exec", "", record.errno, "the program")
        call = batch.calls[record.position]
        named = self._ready.named
        title, hint = named(batch.titles[call.reason]), call.hints.get(record.errno, "")
        if call.name == "execve" and record.errno == errno.E2BIG:
            hint = lowering.excess(self._plan, self.identity.home if self.identity is not None else b"")
        return Failure(call.name, named(call.what), record.errno, named(batch.reasons[call.reason]), title, hint)

    def _batch_of(self, record: Record) -> Batch | None:
        """Return which batch a record is of: the addresses that it goes on at tell."""
        second = self._second
        if second is None:
            return None if self._beyond else self._ways.batch_of(record) or self._first.batch
        if second.inner is not None and record.other >= layout.PRIVATE:
            return second.inner
        return second.batch if record.other >= second.batch.base else self._first.batch


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _page(size: int) -> int:
    return -(-size // layout.PAGE) * layout.PAGE
