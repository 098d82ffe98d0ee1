"""The machine's architecture under the names that the kernel, OCI images and seccomp use for it.

Out of scope: choosing an image by platform (`images`), system call numbers (`seccomp/tables`).

Sources: uname(2), OCI image-spec `image-index.md` (GOARCH and GOARM values), linux/audit.h (AUDIT_ARCH_*).
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture.

    Args:
        machine: as `uname -m` names it.
        oci: as OCI images name it (GOARCH).
        variant: of the OCI platform, or "".
        audit: AUDIT_ARCH number that seccomp sees.
        scmp: as seccomp profiles name it.
        subs: architectures whose programs the same kernel runs too, by `machine`.
    """

    machine: str
    oci: str
    variant: str
    audit: int
    scmp: str
    subs: tuple[str, ...] = ()


ARCHES = {
    arch.machine: arch
    for arch in (
        Arch("x86_64", "amd64", "", 0xC000003E, "SCMP_ARCH_X86_64", ("i386", "x32")),
        Arch("i386", "386", "", 0x40000003, "SCMP_ARCH_X86"),
        Arch("x32", "amd64", "", 0xC000003E, "SCMP_ARCH_X32"),
        Arch("aarch64", "arm64", "v8", 0xC00000B7, "SCMP_ARCH_AARCH64", ("arm",)),
        Arch("arm", "arm", "v7", 0x40000028, "SCMP_ARCH_ARM"),
    )
}


def native() -> Arch:
    """Return this machine's architecture; one that is not in the table is described by its name alone.

    crishim runs on x86-64 and arm64; `crishim check` names any other machine as an error.
    """
    machine = os.uname().machine
    return ARCHES.get(machine, Arch(machine, machine, "", 0, ""))


def supported(arch: Arch) -> bool:
    """Tell whether crishim's engine supports the architecture."""
    return arch.machine in {"x86_64", "aarch64"}
