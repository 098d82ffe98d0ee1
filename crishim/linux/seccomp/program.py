"""A small assembler for classic BPF, as seccomp(2) takes it: trees over call numbers, tests of arguments. Pure.

Programs are put together from blocks that end in a return on every path, so that a test jumps over a block, never
into one. Out of scope: what a profile means (`compiler`).

Invariant: offsets fit: a conditional jump reaches 255 instructions, and where a block is longer an unconditional
one (32 bit) is put in between.

Sources: linux/filter.h, linux/bpf_common.h, `struct seccomp_data` in linux/seccomp.h; both supported machines are
little-endian, so a 64-bit argument's low half comes first.
"""

import struct
from collections.abc import Sequence

from crishim.linux.seccomp.outcome import AND, JA, JEQ, JGE, JGT, LD, RET
from crishim.linux.seccomp.profile import Arg

Insn = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant."""

OFF_NUMBER, OFF_ARCH, OFF_ARGS = 0, 4, 16
MAX_INSTRUCTIONS = 4096
_LOW = 0xFFFFFFFF


def encode(program: Sequence[Insn]) -> bytes:
    """Return the instructions as the kernel reads them: 8 bytes each."""
    return b"".join(struct.pack("<HBBI", *insn) for insn in program)


def load(offset: int) -> Insn:
    """Load a word of `struct seccomp_data`."""
    return LD, 0, 0, offset


def ret(action: int) -> list[Insn]:
    """End with a SECCOMP_RET_* value."""
    return [(RET, 0, 0, action)]


def choose(test: int, constant: int, then: list[Insn], other: list[Insn]) -> list[Insn]:
    """Return `then` if the accumulator compares true with `constant`, else `other`; both end in returns."""
    if len(other) <= 255:
        return [(test, len(other), 0, constant), *other, *then]
    return [(test, 0, 1, constant), (JA, 0, 0, len(other)), *other, *then]


def tree(leaves: Sequence[tuple[int, list[Insn]]]) -> list[Insn]:
    """Return a binary search over the accumulator.

    Args:
        leaves: (first number, block), ascending, the first from 0; each reaches to the next one's first number.
    """
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    return choose(JGE, leaves[middle][0], tree(leaves[middle:]), tree(leaves[:middle]))


def guarded(args: Sequence[Arg], then: list[Insn], other: list[Insn], *, wide: bool) -> list[Insn]:
    """Return `then` if all conditions on arguments hold, else `other`; both end in returns.

    Args:
        args: the conditions.
        then: the block for "all hold".
        other: the block for "one does not".
        wide: the architecture has 64-bit arguments; else only the low half is compared.
    """
    # Each test falls through if it holds and jumps to `fail` if not; built backwards so that lengths are known.
    body: list[Insn] = list(then)
    for arg in reversed(args):
        body = _test(arg, body, wide=wide)
    # `fail` targets were written as offset FAIL from the end of `then`; resolve them now.
    return _resolve(body, len(body), other)


_FAIL = -1
_PASS = -2


def _test(arg: Arg, body: list[Insn], *, wide: bool) -> list[Insn]:
    """Put one argument's test before `body`; _PASS and _FAIL stand for targets that are not known yet."""
    low, high = OFF_ARGS + 8 * arg.index, OFF_ARGS + 8 * arg.index + 4
    code: list[Insn] = []
    op = arg.op.removeprefix("SCMP_CMP_")
    if op == "MASKED_EQ":
        if wide and (arg.value >> 32 or arg.value_two >> 32):
            code += [load(high), (AND, 0, 0, arg.value >> 32), (JEQ, 0, _FAIL, arg.value_two >> 32)]
        code += [load(low), (AND, 0, 0, arg.value & _LOW), (JEQ, 0, _FAIL, arg.value_two & _LOW)]
    elif op == "EQ":
        code += [load(high), (JEQ, 0, _FAIL, arg.value >> 32)] if wide else []
        code += [load(low), (JEQ, 0, _FAIL, arg.value & _LOW)]
    elif op == "NE":
        code += [load(high), (JEQ, 0, _PASS, arg.value >> 32)] if wide else []
        code += [load(low), (JEQ, _FAIL, 0, arg.value & _LOW)]
    else:
        # a > v and a ≥ v; the others are their opposites.
        compare = JGT if op in {"GT", "LE"} else JGE
        yes, no = (_PASS, _FAIL) if op in {"GT", "GE"} else (_FAIL, _PASS)
        code += [load(high), (JGT, yes, 0, arg.value >> 32), (JEQ, 0, no, arg.value >> 32)] if wide else []
        code += [load(low), (compare, yes, no, arg.value & _LOW)]
    return _settle_pass(code) + body


def _settle_pass(code: list[Insn]) -> list[Insn]:
    """Turn _PASS into the offset to the end of one argument's test."""
    size = len(code)

    def at(index: int, target: int) -> int:
        return size - index - 1 if target == _PASS else target

    return [(c, at(i, jt), at(i, jf), k) for i, (c, jt, jf, k) in enumerate(code)]


def _resolve(body: list[Insn], size: int, other: list[Insn]) -> list[Insn]:
    """Turn _FAIL into the offset behind `body`, where `other` starts."""

    def at(index: int, target: int) -> int:
        return size - index - 1 if target == _FAIL else target

    return [*((c, at(i, jt), at(i, jf), k) for i, (c, jt, jf, k) in enumerate(body)), *other]
