"""Which devices a group may use: rules, their v1 text, and their v2 form, a BPF program. Pure.

On v1 rules are lines of `devices.allow`; on v2 a program of type BPF_PROG_TYPE_CGROUP_DEVICE decides each open and
mknod (`bpf` attaches it). Rules only allow; what no rule allows is refused.

Sources: admin-guide/cgroup-v1/devices.rst; cgroup-v2.rst "Device controller"; `struct bpf_cgroup_dev_ctx` and the
instruction set in linux/bpf.h and the kernel's bpf/standardization/instruction-set.rst.
"""

import struct
from dataclasses import dataclass

ANY = -1
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2}


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Allows `access` (a subset of `rwm`) to devices of one kind; major and minor may be ANY.

    Args:
        kind: `c`, `b` or `a` (both).
        major: number or ANY.
        minor: number or ANY.
        access: what is allowed: r(ead), w(rite), m(knod).
    """

    kind: str = "a"
    major: int = ANY
    minor: int = ANY
    access: str = "rwm"

    def text(self) -> str:
        """Return the rule as v1's `devices.allow` takes it."""
        return f"{self.kind} {_number(self.major)}:{_number(self.minor)} {self.access}"


ALL = (DeviceRule(),)

DEFAULT = (
    DeviceRule("c", ANY, ANY, "m"),
    DeviceRule("b", ANY, ANY, "m"),
    DeviceRule("c", 1, 3),  # null
    DeviceRule("c", 1, 5),  # zero
    DeviceRule("c", 1, 7),  # full
    DeviceRule("c", 1, 8),  # random
    DeviceRule("c", 1, 9),  # urandom
    DeviceRule("c", 5, 0),  # tty
    DeviceRule("c", 5, 1),  # console
    DeviceRule("c", 5, 2),  # ptmx
    DeviceRule("c", 136, ANY),  # pts
)
"""What every container may use: making any node (which opens nothing), and the harmless devices of its /dev."""

_R0, _R1, _TYPE, _ACC, _MAJOR, _MINOR = range(6)
_LDX_W = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOV_K, _AND_K, _RSH_K = 0xB4, 0x54, 0x74  # BPF_ALU (32 bit), immediate operand
_MOV_X = 0xBC
_JNE_K, _EXIT = 0x56, 0x95  # BPF_JMP32 | BPF_JNE | BPF_K ; BPF_JMP | BPF_EXIT


def compile_rules(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return the BPF instructions (8 bytes each, little-endian hosts) that allow exactly what `rules` allow."""
    code = [
        _insn(_LDX_W, _TYPE, _R1, 0),
        _insn(_MOV_X, _ACC, _TYPE),
        _insn(_AND_K, _TYPE, imm=0xFFFF),
        _insn(_RSH_K, _ACC, imm=16),
        _insn(_LDX_W, _MAJOR, _R1, 4),
        _insn(_LDX_W, _MINOR, _R1, 8),
    ]
    for rule in rules:
        block = _block(rule)
        code += block
        if len(block) == 2:  # allows everything: what follows could not be reached, which the verifier refuses
            return b"".join(code)
    code += [_insn(_MOV_K, _R0, imm=0), _insn(_EXIT)]
    return b"".join(code)


def _block(rule: DeviceRule) -> list[bytes]:
    """Return one rule's tests, each jumping behind the block if it fails, then `return 1`."""
    tests: list[bytes | tuple[int, int]] = []
    if rule.kind != "a":
        tests.append((_TYPE, _KIND[rule.kind]))
    mask = sum(_ACCESS[c] for c in set(rule.access))
    if mask != 7:
        # Anything asked for beyond the mask must be nothing: r0 = access & ~mask.
        tests += [_insn(_MOV_X, _R0, _ACC), _insn(_AND_K, _R0, imm=7 & ~mask), (_R0, 0)]
    if rule.major != ANY:
        tests.append((_MAJOR, rule.major))
    if rule.minor != ANY:
        tests.append((_MINOR, rule.minor))
    size = len(tests) + 2
    block = []
    for index, test in enumerate(tests):
        block.append(test if isinstance(test, bytes) else _insn(_JNE_K, test[0], off=size - index - 1, imm=test[1]))
    return [*block, _insn(_MOV_K, _R0, imm=1), _insn(_EXIT)]


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def _number(value: int) -> str:
    return "*" if value == ANY else str(value)
