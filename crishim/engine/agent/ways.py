"""The way through links of an image that lead nowhere: what a child makes on its keeper's word before it goes on.

A mount point /data/x, where the image has /data → /nowhere, is made as /nowhere/x inside the root, as other runtimes
do. Only the keeper can tell a link's parts, so the child reads the link and stops; it is sent to a few calls that make
the directories, and from there back to the call that did not find them. Links behind links are rounds of the same.
"""

import os

from crishim.engine.agent import layout
from crishim.engine.agent.batch import Batch, Record
from crishim.engine.agent.kernel import CWD, IN_THE_WAY, Dangling, Kernel
from crishim.engine.agent.starts import First

_ROUNDS = 40
"""Links that are followed in one start, as many as the kernel follows in one path (path_resolution(7))."""
_PARTS = 64


class NoWayError(Exception):
    """A link leads too far. Its text says so; `title` is what it is about."""

    def __init__(self, title: str, text: str) -> None:
        super().__init__(text)
        self.title = title


class Ways:
    """The links of one start.

    Args:
        machine: as `uname -m` names it.
        first: the child's first batch.
        at: offset in the slot from which on there is room.
        size: of that room.
    """

    def __init__(self, machine: str, first: First, at: int, size: int) -> None:
        self._machine = machine
        self._known: dict[int, tuple[Batch, int, Dangling]] = {
            number: (first.batch, 0, dangling) for number, dangling in first.dangling.items()
        }
        self._at = at
        self._half = size // 2 // layout.PAGE * layout.PAGE
        self._rounds = 0
        self._again = 0
        self._last: tuple[Batch, int] | None = None

    def __contains__(self, number: int) -> bool:
        """Tell whether a child that tells this number has stopped for a link."""
        return number in self._known

    def make(self, slot: int, number: int) -> None:
        """Write the calls that a child which has stopped for a link goes on with.

        Raises:
            NoWayError: there is no end to it.
        """
        batch, offset, dangling = self._known[number]
        reason = batch.calls[dangling.again].reason
        title = batch.titles[reason]
        self._rounds += 1
        if self._rounds > _ROUNDS:
            raise NoWayError(title, f"too many symbolic links in the image on the way to {dangling.path}")

        def result(position: int) -> int:
            return int.from_bytes(os.pread(slot, 4, offset + position * layout.RECORD + layout.RESULT), "little")

        link = os.pread(slot, result(dangling.read.position), offset + batch.offset_of(dangling.link))
        if offset == 0:
            self._again = batch.address(dangling.again)
        path = os.fsdecode(link)
        if dangling.file:
            path = path.rpartition("/")[0] or ("/" if path.startswith("/") else "")
        if path.count("/") >= _PARTS:
            raise NoWayError(title, f"the image's symbolic link {dangling.path} leads through too many directories")
        # the child waits in the one half, so the next calls go into the other
        at = self._at + self._half * (self._rounds % 2)
        way = Batch(self._machine, layout.SLOT + at)
        kernel = Kernel(way, max(self._known) + 1)
        way.reason(f"the directories that a symbolic link of the image leads to: {os.fsdecode(link)}", title)
        start = CWD if link.startswith(b"/") else result(dangling.above.position)
        kernel.make(path, directory=True, hints=IN_THE_WAY, links=True, start=start)
        way.call("getpid")
        way.then(self._again)
        content = way.finish().content
        os.pwrite(slot, content, at)
        os.pwrite(slot, way.base.to_bytes(8, "little"), offset + batch.offset_of_other(dangling.stop))
        self._known.update({number: (way, at, further) for number, further in kernel.dangling.items()})
        self._last = way, len(content)

    def batch_of(self, record: Record) -> Batch | None:
        """Return the batch of a record, if it is one of these."""
        if self._last is None:
            return None
        way, size = self._last
        return way if way.base <= record.other < way.base + size else None
