"""Resource limits of processes: names, the runtime's default, and what this host lets us set.

A container never inherits the daemon's limits, which are raised for the daemon's own needs (many descriptors):
each starts with `defaults()`, as if systemd had started it as a service. Out of scope: setting them
(`resource.prlimit`, in the executor).

Sources: getrlimit(2), prlimit(2), asm-generic/resource.h (the same numbers on x86 and arm),
systemd-system.conf(5) DefaultLimitNOFILE=1024:524288.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

NUMBERS = {
    "CPU": 0,
    "FSIZE": 1,
    "DATA": 2,
    "STACK": 3,
    "CORE": 4,
    "RSS": 5,
    "NPROC": 6,
    "NOFILE": 7,
    "MEMLOCK": 8,
    "AS": 9,
    "LOCKS": 10,
    "SIGPENDING": 11,
    "MSGQUEUE": 12,
    "NICE": 13,
    "RTPRIO": 14,
    "RTTIME": 15,
}
"""Name without `RLIMIT_` → number."""

INFINITY = -1
"""No limit, as Python's `resource` module writes it."""


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One limit; INFINITY is no limit."""

    kind: int
    soft: int
    hard: int


def defaults() -> tuple[Rlimit, ...]:
    """Return the limits of a container that asks for none: Linux's own for a service under systemd.

    Open files 1024, raised by a program itself up to 524288 (a soft limit of a million makes old programs, which
    close each descriptor one by one, take minutes; field case E8); no core files unless a program raises the soft
    limit; locked memory 8 MiB, which io_uring and eBPF users expect. Limits that are not named stay as the host's.
    """
    return (
        Rlimit(NUMBERS["CORE"], 0, INFINITY),
        Rlimit(NUMBERS["NOFILE"], 1024, 524_288),
        Rlimit(NUMBERS["MEMLOCK"], 8 << 20, 8 << 20),
    )


def number(name: str) -> int | None:
    """Return a limit's number by its name, with or without `RLIMIT_`, in any case; None if there is none such."""
    return NUMBERS.get(name.strip().upper().removeprefix("RLIMIT_"))


def name_of(kind: int) -> str:
    """Return the name with `RLIMIT_`."""
    return next((f"RLIMIT_{name}" for name, value in NUMBERS.items() if value == kind), f"RLIMIT_{kind}")


def clamp(
    wanted: Iterable[Rlimit], hard: Callable[[int], int], *, may_raise: bool
) -> tuple[tuple[Rlimit, ...], tuple[str, ...]]:
    """Return the limits that can be set, and the names of those that are lower than wanted.

    Without CAP_SYS_RESOURCE nobody raises a hard limit (getrlimit(2)); the hard limit in force is then the nearest
    allowed value.

    Args:
        wanted: what to set.
        hard: the hard limit in force by number, as `HostFacts.hard_rlimit` or `resource.getrlimit` give it.
        may_raise: CAP_SYS_RESOURCE is there.
    """
    result, degraded = [], []
    for limit in wanted:
        ceiling = INFINITY if may_raise else hard(limit.kind)
        soft, top = _least(limit.soft, ceiling), _least(limit.hard, ceiling)
        result.append(Rlimit(limit.kind, _least(soft, top), top))
        if (soft, top) != (limit.soft, limit.hard):
            degraded.append(name_of(limit.kind))
    return tuple(result), tuple(degraded)


def _least(one: int, other: int) -> int:
    if one == INFINITY:
        return other
    return one if other == INFINITY else min(one, other)
