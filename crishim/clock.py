"""Time as the CRI and the engine want it: integers of nanoseconds; and as image configs write it."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

NANOSECONDS = 1_000_000_000


def now() -> int:
    """Return the wall clock in nanoseconds since the epoch (CRI timestamps)."""
    return time.time_ns()


def monotonic() -> float:
    """Return the monotonic clock in seconds (deadlines and durations)."""
    return time.monotonic()


def moment(text: str) -> "datetime | None":
    """Return the moment that an RFC 3339 time is; None if it is none. Without a zone it is taken for UTC."""
    from datetime import UTC, datetime  # what is forked has no use for it

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def boot_id() -> str:
    """Return the kernel's random id of this boot (proc(5), `random/boot_id`)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
