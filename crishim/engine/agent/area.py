"""A keeper's side of agents: writing a batch, ringing, waiting for the answer, taking over from another keeper.

A `Bell` is a keeper's socket; it rings any number of agents, but at most `AT_ONCE` at a time, since the queue of a
datagram socket holds eleven answers (net.unix.max_dgram_qlen). What an answer brings is descriptors; that a batch
has run is known from the area's own number alone, so a lost answer costs nothing but the wait until somebody looks.

Invariant: a batch is written only while the one before is known to have run. Whoever writes holds the area's lock
(lockf: unlike flock's, it does not travel with a descriptor), so two keepers never serve one agent.
"""

import _socket
import errno
import fcntl
import mmap
import os
import select
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from crishim.engine.agent import layout
from crishim.engine.agent.batch import Batch, Record, decode

AT_ONCE = 10
_LOOK_AGAIN = 0.05
_WORD = struct.Struct("<Q")
_MAX_FDS = 253  # SCM_MAX_FD (unix(7))
_NOTHING = Batch(os.uname().machine, layout.AREA + layout.FIRST).finish().content
_ANCILLARY = _socket.CMSG_SPACE(_MAX_FDS * 4)


class BatchFailedError(Exception):
    """A call of a batch failed.

    Args:
        record: the call as the area has it.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(f"call {record.position}: {os.strerror(record.errno) if record.errno else 'not as expected'}")
        self.record = record


class NoAnswerError(Exception):
    """An agent did not answer in time, or is gone."""


class Answer(NamedTuple):
    """What came back through a bell: the agent, the last batch that it ran, descriptors (the receiver's to close)."""

    name: str
    number: int
    fds: list[int]


class Agent:
    """One agent as its keeper sees it.

    The lock goes with the first descriptor of the area that this process closes (fcntl(2)), so it has but this one.

    Args:
        name: of its socket, relative to the working directory.
        area: descriptor of its area, taken over.

    Raises:
        BlockingIOError: another keeper serves it.
        ValueError: the area is of a version that is not served.
    """

    def __init__(self, name: str, area: int) -> None:
        self.name = name
        self._fd = area
        self._wanted: tuple[int, ...] = ()
        fcntl.lockf(area, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._map = mmap.mmap(area, layout.AREA_SIZE)
        magic, version = struct.unpack_from("<II", self._map, 0)
        if magic != layout.MAGIC or version != layout.VERSION:
            self.close()
            raise ValueError(f"{name}: an area of version {version}, this keeper serves {layout.VERSION}")

    def close(self) -> None:
        """Let go of the area; the agent stays."""
        self._map.close()
        os.close(self._fd)

    def done(self) -> bool:
        """Tell whether the last batch has run, to its end or to a failure."""
        return self.word(layout.ASKED) == self.word(layout.DONE)

    def word(self, offset: int) -> int:
        """Return a word of the area."""
        found: int = _WORD.unpack_from(self._map, offset)[0]
        return found

    def half(self, offset: int) -> int:
        """Return half a word of the area: a descriptor's number."""
        return int.from_bytes(self._map[offset : offset + 4], "little")

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the area."""
        return self._map[offset : offset + size]

    def write(self, content: bytes) -> int:
        """Write a batch and return its number.

        Raises:
            ValueError: it is larger than an area; a longer one goes on in a slot.
            RuntimeError: the one before has not run yet.
        """
        if not self.done():
            raise RuntimeError(f"{self.name}: batch {self.word(layout.ASKED)} has not run yet")
        if len(content) > layout.AREA_SIZE - layout.FIRST:
            raise ValueError(f"a batch of {len(content)} bytes does not fit into an area")
        self._map[layout.FIRST : layout.FIRST + len(content)] = content
        number = self.word(layout.ASKED) + 1
        _WORD.pack_into(self._map, layout.ASKED, number)
        return number

    def want(self, fds: Sequence[int]) -> None:
        """Have the answer to the next doorbell bring copies of the agent's descriptors of these numbers.

        If one of them is none, the answer brings nothing at all.
        """
        self._wanted = tuple(fds)

    def set_answer(self) -> None:
        """Write what the next answer is to bring, just before the doorbell; nothing that an earlier keeper wanted."""
        fds, self._wanted = self._wanted, ()
        size = _socket.CMSG_LEN(4 * len(fds)) if fds else 0
        if fds:
            head = struct.pack("<QII", size, _socket.SOL_SOCKET, _socket.SCM_RIGHTS)
            rights = struct.pack(f"<{len(fds)}i", *fds)
            self._map[layout.SENT : layout.SENT + size] = head + rights
        _WORD.pack_into(self._map, layout.ANSWER_CONTROLLEN, size)

    def give_up(self) -> None:
        """Forget a batch that was written but never rung for: an answer has come, and it still has not run."""
        _WORD.pack_into(self._map, layout.ASKED, self.word(layout.DONE))

    def failed(self) -> Record | None:
        """Return the record that stopped the last batch, or None."""
        address = self.word(layout.FAILED)
        if not address:
            return None
        if not layout.AREA <= address <= layout.AREA + layout.AREA_SIZE - layout.RECORD:
            return Record(layout.END, 0, (), 0, (), 0, (0, 0, 0))  # in a slot, whose owner knows more
        return decode(self._map, address - layout.AREA)

    def result(self, index: int) -> int:
        """Return what a call of the last batch gave."""
        offset = layout.FIRST + index * layout.RECORD + layout.RESULT
        return int.from_bytes(self._map[offset : offset + 8], "little", signed=True)


class Bell:
    """A keeper's socket, bound to a name in the working directory.

    Args:
        name: relative, of at most 107 bytes, and never used before: answers to an earlier keeper are not for this one;
            removed with `close`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)
        old = os.umask(0o177)
        try:
            self._sock.bind(name)
        except OSError:
            self._sock.close()
            raise
        finally:
            os.umask(old)
        self._out: set[str] = set()

    def close(self) -> None:
        """Let go of the socket and its name."""
        self._sock.close()
        os.unlink(self._name)

    def fileno(self) -> int:
        """Return the descriptor to poll for answers."""
        return self._sock.fileno()

    @property
    def free(self) -> bool:
        """Tell whether one more agent may be rung."""
        return len(self._out) < AT_ONCE

    def ring(self, agent: Agent, number: int = 0, fds: Sequence[int] = ()) -> None:
        """Ring for a batch by its number, or with 0 for an answer only; copies of `fds` go along.

        Raises:
            NoAnswerError: the agent is gone, or does not take doorbells any more.
            RuntimeError: `AT_ONCE` others have not answered yet.
        """
        if agent.name not in self._out and not self.free:
            raise RuntimeError(f"{len(self._out)} agents have not answered yet")
        rights = b"".join([fd.to_bytes(4, "little") for fd in fds])
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        agent.set_answer()
        try:
            self._sock.sendmsg([_WORD.pack(number)], ancillary, 0, agent.name)
        except OSError as error:
            if error.errno not in {errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN}:
                raise
            raise NoAnswerError(f"{agent.name}: {os.strerror(error.errno)}") from None
        self._out.add(agent.name)

    def answers(self) -> list[Answer]:
        """Return the answers that have come."""
        found: list[Answer] = []
        while True:
            try:
                said, ancillary, _, name = self._sock.recvmsg(16, _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return found
            fds = [
                int.from_bytes(rights[n : n + 4], "little")
                for level, kind, rights in ancillary
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
                for n in range(0, len(rights) - 3, 4)
            ]
            self._out.discard(name)
            found.append(Answer(name, int.from_bytes(said[:8], "little"), fds))

    def forget(self, agent: Agent) -> None:
        """Count a doorbell as answered: its batch is known to have run, or its agent to be gone."""
        self._out.discard(agent.name)

    def wait(self, agent: Agent, number: int, deadline: float) -> list[int]:
        """Wait for an agent's answer (for who has no loop); return the descriptors that came with it.

        Answers of other agents that come meanwhile count as answered; descriptors with them are closed.

        Args:
            agent: that was rung.
            number: of the batch; 0 takes any answer.
            deadline: on the monotonic clock.

        Raises:
            NoAnswerError: the deadline has passed.
        """
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        while True:
            for answer in self.answers():
                if answer.name == agent.name and answer.number >= number:
                    return answer.fds
                for fd in answer.fds:
                    os.close(fd)
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoAnswerError(f"{agent.name}: no answer in time")
            sent = number > 0 and agent.word(layout.ANSWERED) >= number
            if not poll.poll(0 if sent else 1000 * min(left, _LOOK_AGAIN)) and sent:
                self.forget(agent)  # its answer found the queue full
                return []

    def run(self, agent: Agent, content: bytes, fds: Sequence[int] = (), patience: float = 10.0) -> list[int]:
        """Run a batch and return the descriptors that its answer brought.

        Raises:
            BatchFailedError: a call failed; what came before it has been done.
            NoAnswerError: it did not end in time.
        """
        self.ring(agent, agent.write(content), fds)
        found = self.wait(agent, agent.word(layout.ASKED), time.monotonic() + patience)
        record = agent.failed()
        if record is not None:
            for fd in found:
                os.close(fd)
            raise BatchFailedError(record)
        return found

    def take_over(self, agent: Agent, fds: Sequence[int] = (), patience: float = 10.0) -> list[int]:
        """Be an agent's keeper after another one, which must be dead; return the descriptors asked for.

        To be done first with a new bell: an answer that came late to an earlier doorbell could be taken for this one's.

        Doorbells are answered in their order, so with the answer to an empty one all that the dead keeper rang for has
        run; what it had only written never will.

        Raises:
            NoAnswerError: the agent does not answer.
        """
        deadline = time.monotonic() + patience
        self.ring(agent)
        self.wait(agent, 0, deadline)
        if not agent.done():
            agent.give_up()
        agent.want(fds)
        number = agent.write(_NOTHING)
        self.ring(agent, number)
        return self.wait(agent, number, deadline)
