"""What this machine lets a test do: each ability is tried, not guessed from the user id.

A test that lacks one is skipped with a reason that names the ability.
"""

import ctypes
import os
import shutil
import subprocess
from functools import cache

import pytest

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000


@cache
def can_unshare(flag: int) -> bool:
    """Tell whether a child may make a new namespace of this kind (unshare(2))."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ctypes.CDLL(None, use_errno=True).unshare(flag) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@cache
def can_mount() -> bool:
    """Tell whether a tmpfs can be mounted in a mount namespace of our own."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def can_raise_limits() -> bool:
    """Tell whether hard resource limits may be raised here (CAP_SYS_RESOURCE, bit 24 of CapEff)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return bool(next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:")) >> 24 & 1)


def need_containers() -> None:
    """Skip unless mount and network namespaces can be made here: all that an instance needs at least."""
    if not can_unshare(CLONE_NEWNS):
        pytest.skip("lacks the ability to make mount namespaces (CAP_SYS_ADMIN)")
    if not can_unshare(CLONE_NEWNET):
        pytest.skip("lacks the ability to make network namespaces (CAP_SYS_ADMIN)")
    if not can_mount():
        pytest.skip("lacks the ability to mount a tmpfs")


def need_program(name: str, package: str) -> str:
    """Return the path of a program, or skip and name Debian's package that has it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"lacks the program {name} (Debian package {package}; scripts/install brings it)")
    return path


def need_extraction() -> None:
    """Skip unless layers can be unpacked here."""
    if not can_unshare(CLONE_NEWNS) or not can_mount():
        pytest.skip("lacks the ability to make mount namespaces (CAP_SYS_ADMIN)")
