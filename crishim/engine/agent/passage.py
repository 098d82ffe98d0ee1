"""A way through a container's seccomp filter for one call: the clone that makes its process in a PID namespace. Pure.

A filter that needs CAP_SYS_ADMIN is in force before that clone, and a profile may refuse clone, or kill. So a few
instructions before the profile let clone pass, but only with a cookie in an argument that its flags leave unused. The
cookie is random; what it would allow is what was asked for anyway, and nobody in the container can read the filter
(PTRACE_SECCOMP_GET_FILTER wants CAP_SYS_ADMIN and a tracer without filters).

Sources: seccomp(2), linux/filter.h, linux/audit.h; clone(2) for its unused arguments on both machines.
"""

import struct

from crishim.linux.seccomp.outcome import JEQ, LD, RET
from crishim.linux.seccomp.tables import numbers

COOKIE_ARGUMENT = 4
"""x86-64 has `tls` there, arm64 `child_tid`: neither is looked at without its flag."""
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW = 0x7FFF0000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_LOW = 0xFFFFFFFF


def with_passage(program: bytes, machine: str, cookie: int) -> bytes:
    """Return a filter program that lets a clone with this cookie pass, and is the given one for all else."""
    place = _ARGUMENTS + 8 * COOKIE_ARGUMENT
    tests = (
        (_ARCH, AUDIT[machine]),
        (_NUMBER, numbers(machine)["clone"]),
        (place, cookie & _LOW),
        (place + 4, cookie >> 32),
    )
    out = b""
    left = 2 * len(tests) + 1
    for offset, value in tests:
        left -= 2
        out += struct.pack("<HBBI", LD, 0, 0, offset) + struct.pack("<HBBI", JEQ, 0, left, value)
    return out + struct.pack("<HBBI", RET, 0, 0, _ALLOW) + program
