"""System call numbers by architecture, from `syscalls.json` (written by scripts/syscalls). Loaded at first use.

Out of scope: what may be called. Sources: see scripts/syscalls; a test compares with the kernel's headers.
"""

import json
import os
from functools import cache

X32_BIT = 0x40000000
"""Set in the number of every x32 call; the audit architecture is x86-64's (asm/unistd.h)."""

X32_OWN = 512
"""From here on, its bit aside, x32 has calls of its own that are older than their numbers look (512 to 547)."""

ARM_PRIVATE = 0x0F0000
"""Where 32-bit ARM's private calls start (set_tls, cacheflush…; asm/unistd.h)."""


@cache
def numbers(arch: str) -> dict[str, int]:
    """Return name → number for `x86_64`, `i386`, `x32`, `aarch64` or `arm`; x32's numbers hold its bit."""
    return _tables()[arch]


@cache
def all_names() -> frozenset[str]:
    """Return every name that any architecture knows."""
    return frozenset(name for table in _tables().values() for name in table)


@cache
def _tables() -> dict[str, dict[str, int]]:
    with open(os.path.join(os.path.dirname(__file__), "syscalls.json"), encoding="ascii") as file:
        tables: dict[str, dict[str, int]] = json.load(file)
    return tables
