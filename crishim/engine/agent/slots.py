"""The files that starts are written to: used again, but never while a child may still run from one.

A child that hangs keeps its slot, so the number of those is limited: a workload whose starts hang must not take the
machine's memory. Slots are whole: reserved to the last byte, never truncated (a store into a hole on a full file system
ends the child).
"""

import os

KEPT = 4
"""Free slots that are kept, the largest ones."""


class SlotsExhaustedError(Exception):
    """Too many starts hang."""


class Slots:
    """A keeper's slots.

    Args:
        limit: how many may be out at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[tuple[int, int]] = []
        self._out: dict[int, int] = {}

    @property
    def out(self) -> int:
        """How many starts have one."""
        return len(self._out)

    def take(self, size: int) -> int:
        """Return a slot's descriptor, of at least so many bytes.

        Raises:
            SlotsExhaustedError: too many are out.
            OSError: there is no memory for it.
        """
        if len(self._out) >= self._limit:
            raise SlotsExhaustedError(f"{len(self._out)} starts have not come to an end")
        for number, (room, fd) in enumerate(self._free):
            if room >= size:
                del self._free[number]
                self._out[fd] = room
                return fd
        fd = os.memfd_create("crishim-slot", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.close(fd)
            raise
        self._out[fd] = size
        return fd

    def give(self, fd: int) -> None:
        """Take a slot back whose child runs its program, or has ended."""
        self._free.append((self._out.pop(fd), fd))
        self._free.sort()
        if len(self._free) > KEPT:
            os.close(self._free.pop(0)[1])

    def close(self) -> None:
        """Let go of all."""
        for fd in [*self._out, *(fd for _, fd in self._free)]:
            os.close(fd)
        self._out.clear()
        self._free.clear()
