"""Time as the CRI and the engine want it: integers of nanoseconds."""

import time

NANOSECONDS = 1_000_000_000


def now() -> int:
    """Return the wall clock in nanoseconds since the epoch (CRI timestamps)."""
    return time.time_ns()


def monotonic() -> float:
    """Return the monotonic clock in seconds (deadlines and durations)."""
    return time.monotonic()


def boot_id() -> str:
    """Return the kernel's random id of this boot (proc(5), `random/boot_id`)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
