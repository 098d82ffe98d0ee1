"""Resource limits of processes: names, the runtime's default, and what this host lets us set.

A container never inherits the daemon's limits, which are raised for the daemon's own needs (many descriptors):
each starts with `container(…)`, whatever the daemon has. Out of scope: setting them (`resource.prlimit`, in the
executor).

Sources: getrlimit(2), prlimit(2), asm-generic/resource.h (the same numbers on x86 and arm),
systemd-system.conf(5) DefaultLimitNOFILE=1024:524288.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crishim.errors import InvalidArgumentError

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
    """One limit by its kernel number (getrlimit(2)); INFINITY is no limit."""

    resource: int
    soft: int
    hard: int


KERNEL = tuple(
    Rlimit(NUMBERS[name], soft, hard)
    for name, soft, hard in (
        ("CPU", INFINITY, INFINITY),
        ("FSIZE", INFINITY, INFINITY),
        ("DATA", INFINITY, INFINITY),
        ("STACK", 8 << 20, INFINITY),
        ("CORE", 0, INFINITY),
        ("RSS", INFINITY, INFINITY),
        ("NOFILE", 1024, 4096),
        ("MEMLOCK", 8 << 20, 8 << 20),
        ("AS", INFINITY, INFINITY),
        ("LOCKS", INFINITY, INFINITY),
        ("MSGQUEUE", 819_200, 819_200),
        ("NICE", 0, 0),
        ("RTPRIO", 0, 0),
        ("RTTIME", INFINITY, INFINITY),
    )
)
"""What the kernel gives its first process (INIT_RLIMITS in asm-generic/resource.h), but for `_BY_THREADS`."""

_BY_THREADS = ("NPROC", "SIGPENDING")
"""Half of the threads that the machine may have: `set_max_threads`, `fork_init` in kernel/fork.c."""

DEFAULT = ("nofile=1024:524288",)
"""The runtime's own default, in `parse`'s form: as systemd gives its services. A soft limit of a million instead lets
old programs, which close each possible descriptor one by one, take minutes."""


def parse(text: str) -> Rlimit:
    """Return the limit that `nofile=1024:524288`, `core=unlimited` or `nproc=100` describes.

    Raises:
        InvalidArgumentError: it has another form, no such limit exists, or soft is above hard.
    """
    name, _, values = text.partition("=")
    kind = number(name)
    soft, _, hard = values.partition(":")
    if kind is None or not _is_value(soft) or (hard and not _is_value(hard)):
        raise InvalidArgumentError("rlimit", f"{text!r} is not NAME=SOFT[:HARD], like nofile=1024:524288")
    limit = Rlimit(kind, _value(soft), _value(hard or soft))
    if _least(limit.soft, limit.hard) != limit.soft:
        raise InvalidArgumentError("rlimit", f"{text!r}: the soft limit is above the hard limit")
    return limit


def container(configured: Iterable[str], threads_max: int) -> tuple[Rlimit, ...]:
    """Return all limits of a container, by number: the kernel's, with the configured ones in their place.

    `threads_max` is the most threads that the machine may have (kernel.threads-max).
    """
    limits = {limit.resource: limit for limit in KERNEL}
    half = threads_max // 2
    limits.update({NUMBERS[name]: Rlimit(NUMBERS[name], half, half) for name in _BY_THREADS})
    limits.update({limit.resource: limit for limit in map(parse, configured)})
    return tuple(limits[kind] for kind in sorted(limits))


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
        ceiling = INFINITY if may_raise else hard(limit.resource)
        soft, top = _least(limit.soft, ceiling), _least(limit.hard, ceiling)
        result.append(Rlimit(limit.resource, _least(soft, top), top))
        if (soft, top) != (limit.soft, limit.hard):
            degraded.append(name_of(limit.resource))
    return tuple(result), tuple(degraded)


def _least(one: int, other: int) -> int:
    if one == INFINITY:
        return other
    return one if other == INFINITY else min(one, other)


def _is_value(text: str) -> bool:
    return text == "unlimited" or (text.isascii() and text.isdigit())


def _value(text: str) -> int:
    return INFINITY if text == "unlimited" else int(text)
