"""A thread that works a few pieces ahead of who takes them, for a child that was forked without the threading module.

Decompressing, digesting and system calls let go of the interpreter lock, so that a large layer takes as long as the
longer of its halves. Invariant: at most `_AHEAD` pieces wait, each is handed over once and in order, and what the
thread raised is raised to the taker. A taker that gives up leaves the thread waiting: only for a process that ends.
"""

import _queue  # not `queue`: with threading, which it imports, that is a quarter of a megabyte in each child
import _thread
from collections.abc import Iterable, Iterator

_AHEAD = 4


def ahead(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same pieces, made by a thread that starts with the first one asked for."""
    made: _queue.SimpleQueue[bytes | BaseException | None] = _queue.SimpleQueue()
    room: _queue.SimpleQueue[None] = _queue.SimpleQueue()

    def work() -> None:
        try:
            for piece in pieces:
                room.get()
                made.put(piece)
            made.put(None)
        except BaseException as fault:  # noqa: BLE001  raised by the taker
            made.put(fault)

    for _ in range(_AHEAD):
        room.put(None)
    _thread.start_new_thread(work, ())
    while (piece := made.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        room.put(None)
        yield piece
