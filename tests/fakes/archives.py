"""Archives without a store, for tests of the server and the command line."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from crishim.errors import NotFoundError
from crishim.images.archive.api import Form, Loaded, Order
from crishim.images.progress import Item, Report, State


@dataclass
class FakeArchives:
    """Remembers calls and what came in; `closed` counts the archives whose reader has left or reached the end."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    pieces: Sequence[bytes] = (b"a" * 1000, b"b" * 24)
    closed: int = 0

    async def load(self, chunks: AsyncIterator[bytes], name: str, report: Report) -> tuple[Loaded, ...]:
        data = b"".join([chunk async for chunk in chunks])
        await report([Item("archive", "archive", State.DONE, len(data))])
        self.calls.append(("load", name, data))
        return (Loaded("sha256:1", ("docker.io/library/a:1", "docker.io/library/a:2")), Loaded("sha256:2", ()))

    async def import_image(self, chunks: AsyncIterator[bytes], order: Order, report: Report) -> tuple[str, str]:
        data = b"".join([chunk async for chunk in chunks])
        await report([Item("archive", "archive", State.DONE, len(data))])
        self.calls.append(("import", order, data))
        return "sha256:3", order.name

    async def save(self, references: Sequence[str], form: Form) -> AsyncGenerator[bytes, None]:
        self.calls.append(("save", tuple(references), form))
        if "absent" in references:
            raise NotFoundError("no image absent is here")
        try:
            for piece in self.pieces:
                yield piece
        finally:
            self.closed += 1
