"""Flags of a Localhost seccomp profile are those of the filter that is in force in the container."""

import ctypes
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.request import ContainerSecurity, ProfileType, SecurityProfile
from tests.support.lab import OWN_PID, Lab, open_lab, scenario

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, PTRACE_SECCOMP_GET_METADATA = 0x4206, 0x4207, 17, 0x420D
LOG = 2


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


def filter_flags(pid: int) -> int:
    """Return the flags of a process' newest filter (`struct seccomp_metadata`; the kernel tells of LOG only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    assert libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        assert libc.ptrace(PTRACE_INTERRUPT, pid, None, None) == 0
        os.waitpid(pid, 0x40000000)  # __WALL
        metadata = (ctypes.c_uint64 * 2)(0, 0)
        size = ctypes.c_void_p(ctypes.sizeof(metadata))
        if libc.ptrace(PTRACE_SECCOMP_GET_METADATA, pid, size, ctypes.addressof(metadata)) < 0:
            pytest.skip(f"lacks PTRACE_SECCOMP_GET_METADATA ({os.strerror(ctypes.get_errno())})")
        return int(metadata[1])
    finally:
        libc.ptrace(PTRACE_DETACH, pid, None, ctypes.c_void_p(signal.SIGCONT))


@pytest.mark.parametrize(("flags", "seen"), [([], 0), (["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"], LOG)])
@pytest.mark.parametrize("no_new_privs", [False, True])
@scenario
async def test_flags_reach_the_filter(lab: Lab, *, flags: list[str], seen: int, no_new_privs: bool) -> None:
    path = Path(lab.directory, "profile.json")
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}), encoding="ascii")
    profile = SecurityProfile(ProfileType.LOCALHOST, str(path))
    rights = ContainerSecurity(namespaces=OWN_PID, seccomp=profile, no_new_privs=no_new_privs)
    async with lab.pod() as pod:
        container = await pod.run("/bin/sleep", "600", security=rights)
        assert filter_flags(container.started.pid) == seen
