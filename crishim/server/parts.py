"""Lists in parts: a streamed list sends its rows in messages that any client can receive, as they are made.

Each message of a streamed list is, like the list's own, nothing but rows as field 1, so any cut between two rows is
right. Invariant: no message is longer than `BYTES`, but for a single row that is; between two messages the daemon
does other work.
"""

from collections.abc import Iterable

from crishim.server.methods import Sender

BYTES = 1 << 20
"""Far below the 4 MiB that a gRPC client receives unless it asks for more."""
ROWS = 256
"""Most rows of a message: a row of stats takes a fraction of a millisecond to make."""


async def stream(rows: Iterable[bytes], send: Sender) -> None:
    """Send all rows."""
    part: list[bytes] = []
    size = 0
    for row in rows:
        if part and (size + len(row) > BYTES or len(part) == ROWS):
            await send(b"".join(part))
            part, size = [], 0
        part.append(row)
        size += len(row)
    if part:
        await send(b"".join(part))
