"""An interpreter of classic BPF, so that outcomes of a seccomp filter can be asked without a kernel."""

import struct
from collections.abc import Sequence


def run(program: bytes, number: int, audit: int, args: Sequence[int] = ()) -> tuple[int, int]:
    """Return (SECCOMP_RET_* value, instructions executed) of one call.

    Fails on an instruction that seccomp does not take, a jump out of the program, or a missing return.
    """
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    words = struct.pack("<IIQ6Q", number, audit, 0, *(list(args) + [0] * 6)[:6])
    accumulator, at = 0, 0
    for steps in range(1, len(code) + 1):
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", words, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            at += k
        elif op in {0x15, 0x25, 0x35}:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[op]
            at += jt if holds else jf
        elif op == 0x06:
            return k, steps
        else:
            raise AssertionError(f"instruction {op:#x} at {at - 1}")
    raise AssertionError("no return")
