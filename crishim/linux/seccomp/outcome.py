"""What a seccomp filter decides about one call: an interpreter of classic BPF, for explaining what has failed. Pure.

Sources: linux/filter.h, linux/bpf_common.h, linux/seccomp.h (`struct seccomp_data`); seccomp(2) for what a filter
returns.
"""

import errno
import struct
from collections.abc import Sequence
from typing import NamedTuple

LD, JA, JEQ, JGT, JGE, RET, AND = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06, 0x54
"""The instructions that our filters are made of."""
_ACTION, _DATA = 0xFFFF0000, 0xFFFF
_KILL_PROCESS, _KILL_THREAD, _TRAP = 0x80000000, 0x00000000, 0x00030000
_ERRNO, _USER_NOTIF, _TRACE = 0x00050000, 0x7FC00000, 0x7FF00000
_MAX_ERRNO = 4095


class Refusal(NamedTuple):
    """How a filter refuses a call: it `kills` (SIGSYS), or gives an errno, which may be 0: not done, and no error."""

    kills: bool
    errno: int = 0


def refusal(program: bytes, number: int, audit: int, args: Sequence[int] = ()) -> Refusal | None:
    """Return how a filter refuses a call where nobody traces or listens to its notifications; None: it does not."""
    value = run(program, number, audit, args)[0]
    action = value & _ACTION
    if action in {_KILL_PROCESS, _KILL_THREAD, _TRAP}:
        return Refusal(kills=True)
    if action == _ERRNO:
        return Refusal(kills=False, errno=min(value & _DATA, _MAX_ERRNO))
    if action in {_USER_NOTIF, _TRACE}:
        return Refusal(kills=False, errno=errno.ENOSYS)
    return None


def run(program: bytes, number: int, audit: int, args: Sequence[int] = ()) -> tuple[int, int]:
    """Return (SECCOMP_RET_* value, instructions executed) of one call.

    Raises:
        ValueError: the kernel would not take the program: an instruction that seccomp has not, or no return.
    """
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    words = struct.pack("<IIQ", number & 0xFFFFFFFF, audit, 0) + struct.pack("<6Q", *(list(args) + [0] * 6)[:6])
    accumulator, at = 0, 0
    for steps in range(1, len(code) + 1):
        if at >= len(code):
            break
        op, jt, jf, k = code[at]
        at += 1
        if op == LD:
            accumulator = struct.unpack_from("<I", words, k)[0]
        elif op == AND:
            accumulator &= k
        elif op == JA:
            at += k
        elif op in {JEQ, JGT, JGE}:
            holds = {JEQ: accumulator == k, JGT: accumulator > k, JGE: accumulator >= k}[op]
            at += jt if holds else jf
        elif op == RET:
            return k, steps
        else:
            raise ValueError(f"instruction {op:#x} at {at - 1}")
    raise ValueError("no return")
