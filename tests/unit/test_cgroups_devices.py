"""The device program, run by an interpreter of the few instructions that it uses."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.linux.cgroups.devices import ALL, DEFAULT, DeviceRule, compile_rules

ACCESS = {"m": 1, "r": 2, "w": 4}


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """Interpret the program for one access; fails on an unknown instruction, a jump out, or no end."""
    code = [struct.unpack_from("<BBhi", program, i) for i in range(0, len(program), 8)]
    mask = sum(ACCESS[c] for c in access)
    context = {0: mask << 16 | {"b": 1, "c": 2}[kind], 4: major, 8: minor}
    r = [0] * 10
    at = 0
    for _ in range(10_000):
        op, registers, offset, constant = code[at]
        dst, src = registers & 15, registers >> 4
        at += 1
        if op == 0x61:
            r[dst] = context[offset]
        elif op == 0xBC:
            r[dst] = r[src]
        elif op == 0xB4:
            r[dst] = constant
        elif op == 0x54:
            r[dst] &= constant & 0xFFFFFFFF
        elif op == 0x74:
            r[dst] >>= constant
        elif op == 0x56:
            at += offset if r[dst] != constant & 0xFFFFFFFF else 0
        elif op == 0x95:
            return r[0]
        else:
            raise AssertionError(hex(op))
    raise AssertionError("does not end")


def allowed(rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    """What the rules mean, said plainly."""
    return any(
        rule.kind in {"a", kind}
        and rule.major in {-1, major}
        and rule.minor in {-1, minor}
        and set(access) <= set(rule.access)
        for rule in rules
    )


number = st.integers(0, 3)
rule = st.builds(
    DeviceRule,
    st.sampled_from("abc"),
    st.one_of(st.just(-1), number),
    st.one_of(st.just(-1), number),
    st.sets(st.sampled_from("rwm"), min_size=1).map(lambda s: "".join(sorted(s))),
)


@given(
    st.lists(rule, max_size=8).map(tuple),
    st.sampled_from("bc"),
    number,
    number,
    st.sets(st.sampled_from("rwm"), min_size=1).map("".join),
)
def test_the_program_decides_as_the_rules_say(
    rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str
) -> None:
    assert run(compile_rules(rules), kind, major, minor, access) == allowed(rules, kind, major, minor, access)


@pytest.mark.parametrize(
    ("device", "access", "result"),
    [
        (("c", 1, 3), "rw", 1),
        (("c", 1, 3), "rwm", 1),
        (("c", 5, 2), "rw", 1),
        (("c", 136, 77), "rw", 1),
        (("c", 10, 229), "m", 1),
        (("b", 8, 0), "m", 1),
        (("c", 10, 229), "r", 0),
        (("b", 8, 0), "r", 0),
        (("c", 1, 1), "rw", 0),
        (("c", 1, 11), "r", 0),
        (("b", 8, 0), "rm", 0),
    ],
)
def test_default_rules(device: tuple[str, int, int], access: str, result: int) -> None:
    assert run(compile_rules(DEFAULT), *device, access) == result


def test_all_and_nothing() -> None:
    assert run(compile_rules(ALL), "b", 8, 0, "rwm") == 1
    assert run(compile_rules(()), "c", 1, 3, "r") == 0


def test_nothing_follows_a_rule_that_allows_all() -> None:
    assert compile_rules((DeviceRule(), DeviceRule("c", 1, 3))) == compile_rules(ALL)


def test_v1_text() -> None:
    assert [r.text() for r in (*DEFAULT[:3], DEFAULT[-1], *ALL)] == [
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 136:* rwm",
        "a *:* rwm",
    ]
