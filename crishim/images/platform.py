"""Which of an index's manifests is for this machine.

Pure but for `host()`. Entries of an unknown platform (attestations) are never chosen, nor is entry 0 for want of
another. Source: image-spec, image-index.md, "Platform Variants"; names are Go's GOOS and GOARCH.
"""

import os
from dataclasses import dataclass

from crishim.words import number

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture with its variant."""

    architecture: str
    os: str = "linux"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host() -> Platform:
    """Return this machine's platform."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(architecture, "linux", variant)


def rank(wanted: Platform, offered: Platform) -> int | None:
    """Return how well `offered` runs on `wanted`: 0 is best, None is not at all.

    An ARM machine runs older variants of its architecture (v7 runs v6), never newer ones.
    """
    architecture = _ALIASES.get(offered.architecture, offered.architecture)
    if offered.os != wanted.os or architecture != wanted.architecture:
        return None
    default = _DEFAULT_VARIANTS.get(architecture, "")
    mine, theirs = wanted.variant or default, offered.variant or default
    if mine == theirs:
        return 0
    if architecture not in _DEFAULT_VARIANTS:
        return 1 if not offered.variant else None  # amd64/v2 and up need more than every amd64 has
    newest, needed = number(mine[1:]), number(theirs[1:])
    if newest is None or needed is None:
        return None
    return newest - needed if newest > needed else None
