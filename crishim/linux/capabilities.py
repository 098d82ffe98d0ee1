"""Capabilities: names, numbers, and sets of them as integers (bit n is capability n).

Out of scope: setting them (capset(2), prctl(2): `linux.calls`) and which sets a container gets (the planner).

Sources: capabilities(7), linux/capability.h, proc(5) `/proc/pid/status` (CapBnd, CapEff).
"""

from collections.abc import Iterable

_ORDER = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(_ORDER)}
"""Name without `CAP_` → number, all 41 up to Linux 6.18."""

ALL = (1 << len(_ORDER)) - 1

DEFAULT = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
"""What a container has that asks for nothing: the list that Docker, containerd and CRI users know."""


def mask(names: Iterable[str]) -> int:
    """Return the set of known names (as `canonical` gives them)."""
    result = 0
    for name in names:
        result |= 1 << NUMBERS[name]
    return result


DEFAULT_MASK = mask(DEFAULT)


def canonical(name: str) -> str:
    """Return a name in upper case, without `CAP_` and surrounding space."""
    return name.strip().upper().removeprefix("CAP_")


def parse(names: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    """Return (set, names that are no capability).

    Args:
        names: with or without `CAP_`, in any case; `ALL` means every capability.
    """
    result = 0
    unknown = []
    for name in names:
        plain = canonical(name)
        if plain == "ALL":
            result |= ALL
        elif plain in NUMBERS:
            result |= 1 << NUMBERS[plain]
        else:
            unknown.append(name)
    return result, tuple(unknown)


def adjust(base: int, add: Iterable[str], drop: Iterable[str]) -> int:
    """Return `base` after a request's add and drop lists; unknown names count for nothing (check with `parse`).

    `ALL` acts first and single names after it, so that "drop ALL, add NET_BIND_SERVICE" leaves one, and
    "add ALL, drop SYS_ADMIN" leaves all but one. A name in both lists is dropped.
    """
    added, dropped = [canonical(n) for n in add], [canonical(n) for n in drop]
    result = base
    if "ALL" in added:
        result = ALL
    if "ALL" in dropped:
        result = 0
    result |= parse(n for n in added if n != "ALL")[0]
    return result & ~parse(n for n in dropped if n != "ALL")[0]


def names(capabilities: int) -> tuple[str, ...]:
    """Return the names, with `CAP_`, of a set's members in the order of their numbers."""
    return tuple(f"CAP_{name}" for name, number in NUMBERS.items() if capabilities >> number & 1)


def has(capabilities: int, name: str) -> bool:
    """Tell whether a set holds the capability `name` (without `CAP_`)."""
    return bool(capabilities >> NUMBERS[name] & 1)


def read_sets(status: str = "/proc/self/status") -> dict[str, int]:
    """Return the sets of a process by their names in proc(5): `Inh`, `Prm`, `Eff`, `Bnd`, `Amb`."""
    sets = {}
    with open(status, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Cap"):
                key, value = line[3:].split(":")
                sets[key] = int(value, 16)
    return sets


def bounding() -> int:
    """Return this process's bounding set: what no container started by it can exceed."""
    return read_sets().get("Bnd", 0) & ALL


def last() -> int:
    """Return the number of the kernel's last capability."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return len(_ORDER) - 1
