"""What compiled filters decide, asked of an interpreter, for both machines."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidArgumentError
from crishim.linux import capabilities
from crishim.linux.arch import ARCHES
from crishim.linux.seccomp import tables
from crishim.linux.seccomp.compiler import compile_profile
from crishim.linux.seccomp.default import default_profile
from crishim.linux.seccomp.outcome import run
from crishim.linux.seccomp.profile import Arg, Profile, Rule, parse_profile

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
KERNEL = (6, 18)
GOLDEN = Path(__file__).parent.parent / "golden" / "seccomp"
U64 = (1 << 64) - 1


def decide(program: bytes, arch: str, name: str | int, *args: int) -> int:
    number = tables.numbers(arch)[name] if isinstance(name, str) else name
    return run(program, number, ARCHES[arch].audit, args)[0]


def default(arch: str, caps: int = capabilities.DEFAULT_MASK) -> bytes:
    return compile_profile(default_profile(), caps, ARCHES[arch], KERNEL)


def compiled(document: object, caps: int = 0, arch: str = "x86_64", kernel: tuple[int, int] = KERNEL) -> bytes:
    return compile_profile(parse_profile(document, "test"), caps, ARCHES[arch], kernel)


NATIVE = ["x86_64", "aarch64"]
FAMILY = [("x86_64", "x86_64"), ("x86_64", "i386"), ("x86_64", "x32"), ("aarch64", "aarch64"), ("aarch64", "arm")]


@pytest.mark.parametrize(("native", "arch"), FAMILY)
def test_default_allows_ordinary_calls(native: str, arch: str) -> None:
    program = default(native)
    wanted = [
        "read",
        "write",
        "openat",
        "close",
        "mmap",
        "munmap",
        "futex",
        "execve",
        "exit_group",
        "getrandom",
        "rt_sigreturn",
        "socket",
        "wait4",
    ]
    wanted = [name for name in wanted if name in tables.numbers(arch)]
    assert {name: decide(program, arch, name) for name in wanted} == dict.fromkeys(wanted, ALLOW)


@pytest.mark.parametrize(("native", "arch"), FAMILY)
def test_default_refuses_what_reaches_the_host(native: str, arch: str) -> None:
    program = default(native)
    refused = [
        "mount",
        "umount2",
        "pivot_root",
        "setns",
        "unshare",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "init_module",
        "finit_module",
        "kexec_load",
        "swapon",
        "swapoff",
        "reboot",
        "open_by_handle_at",
        "perf_event_open",
        "userfaultfd",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "move_mount",
        "fsopen",
        "open_tree",
        "mount_setattr",
        "settimeofday",
        "quotactl",
        "acct",
        "iopl",
        "ioperm",
        "kcmp",
        "move_pages",
        "lookup_dcookie",
        "sethostname",
        "setdomainname",
        "nfsservctl",
    ]
    refused = [name for name in refused if name in tables.numbers(arch)]
    assert {name: decide(program, arch, name) for name in refused} == dict.fromkeys(refused, EPERM)


@pytest.mark.parametrize(("native", "arch"), FAMILY)
@pytest.mark.parametrize("number", [468, 469, 500, 511, 600, 5000])
def test_calls_that_nobody_could_know_give_enosys(native: str, arch: str, number: int) -> None:
    bit = tables.X32_BIT if arch == "x32" else 0
    assert decide(default(native), arch, number | bit) == ENOSYS


@pytest.mark.parametrize("number", [0xFFFFFFFF, 0x3FFFFFFF, 336 + 60, 0xF0005])
def test_numbers_outside_of_the_table(number: int) -> None:
    assert decide(default("x86_64"), "x86_64", number) == ENOSYS


@pytest.mark.parametrize(("native", "arch"), FAMILY)
def test_families_of_the_host_and_of_the_kernels_ciphers_are_refused(native: str, arch: str) -> None:
    program = default(native)
    for family in (38, 40):
        assert decide(program, arch, "socket", family, 5, 0) == 0x50000 | errno.EAFNOSUPPORT
        assert decide(program, arch, "socket", family | 1 << 32, 5, 0) == 0x50000 | errno.EAFNOSUPPORT
    assert {decide(program, arch, "socket", family, 1, 0) for family in (1, 2, 10, 16, 17, 37, 39, 41)} == {ALLOW}
    if "socketcall" in tables.numbers(arch):
        assert decide(program, arch, "socketcall", 1, 0x1000) == ALLOW


@pytest.mark.parametrize(("native", "arch"), FAMILY)
def test_clone_makes_threads_but_no_namespaces(native: str, arch: str) -> None:
    program = default(native)
    threads = 0x3D0F00
    assert decide(program, arch, "clone", threads) == ALLOW
    assert decide(program, arch, "clone", 17) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, arch, "clone", threads | flag) == EPERM
    assert decide(program, arch, "clone3") == ENOSYS


@pytest.mark.parametrize("native", NATIVE)
def test_sys_admin_may_make_namespaces_and_mount(native: str) -> None:
    program = default(native, capabilities.ALL)
    for name in ("clone3", "mount", "setns", "unshare", "bpf", "fsopen"):
        assert decide(program, native, name) == ALLOW
    assert decide(program, native, "clone", 0x10000000) == ALLOW
    assert decide(program, native, "keyctl") == EPERM


@pytest.mark.parametrize(
    ("cap", "name"),
    [("SYS_TIME", "settimeofday"), ("SYS_BOOT", "reboot"), ("BPF", "bpf"), ("SYS_NICE", "mbind"), ("SYSLOG", "syslog")],
)
def test_a_capability_brings_its_calls(cap: str, name: str) -> None:
    assert decide(default("x86_64"), "x86_64", name) == EPERM
    assert decide(default("x86_64", 1 << capabilities.NUMBERS[cap]), "x86_64", name) == ALLOW


def test_personality() -> None:
    program = default("x86_64")
    assert decide(program, "x86_64", "personality", 0xFFFFFFFF) == ALLOW
    assert decide(program, "x86_64", "personality", 8) == ALLOW
    assert decide(program, "x86_64", "personality", 0x0040000) == EPERM  # ADDR_NO_RANDOMIZE


def test_a_foreign_architecture_ends_the_process() -> None:
    assert run(default("x86_64"), 0, ARCHES["aarch64"].audit)[0] == KILL
    only = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}
    assert decide(compiled(only), "i386", "read") == KILL
    assert decide(compiled(only), "x86_64", "read") == ALLOW
    assert decide(compiled(only), "x32", "read") == ENOSYS


@pytest.mark.parametrize("arch", NATIVE)
def test_hot_calls_are_short(arch: str) -> None:
    program = default(arch)
    steps = [run(program, number, ARCHES[arch].audit)[1] for number in tables.numbers(arch).values()]
    assert max(steps) < 32
    assert sum(steps) / len(steps) < 16
    assert len(program) // 8 < 4096


def test_golden_programs() -> None:
    # A change of the program is looked at, then written with CRISHIM_GOLDEN=write.
    for arch in NATIVE:
        text = "".join(
            f"{program[at : at + 8].hex(' ', 2)}\n" for program in [default(arch)] for at in range(0, len(program), 8)
        )
        path = GOLDEN / f"default-{arch}.txt"
        if os.environ.get("CRISHIM_GOLDEN") == "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        assert path.read_text(encoding="ascii") == text


OPERATORS: dict[str, Callable[[int, int, int], bool]] = {
    "SCMP_CMP_EQ": lambda a, v, _: a == v,
    "SCMP_CMP_NE": lambda a, v, _: a != v,
    "SCMP_CMP_LT": lambda a, v, _: a < v,
    "SCMP_CMP_LE": lambda a, v, _: a <= v,
    "SCMP_CMP_GE": lambda a, v, _: a >= v,
    "SCMP_CMP_GT": lambda a, v, _: a > v,
    "SCMP_CMP_MASKED_EQ": lambda a, v, w: a & v == w,
}
edges = st.sampled_from([0, 1, 2, 0xFFFFFFFF, 0x1_0000_0000, 0x1_0000_0001, 0x2_0000_0000, U64 - 1, U64])
values = st.one_of(edges, st.integers(0, U64))
condition = st.builds(Arg, st.integers(0, 5), values, values, st.sampled_from(sorted(OPERATORS)))


@given(st.lists(condition, min_size=1, max_size=6), st.lists(values, min_size=6, max_size=6))
def test_argument_conditions_mean_what_they_say(conditions: list[Arg], args: list[int]) -> None:
    rule = Rule(("read",), ALLOW, tuple(conditions))
    program = compile_profile(Profile(EPERM, (), (rule,)), 0, ARCHES["x86_64"], KERNEL)
    held = [OPERATORS[c.op](args[c.index], c.value, c.value_two) for c in conditions]
    distinct = len({c.index for c in conditions}) == len(conditions)
    expected = ALLOW if (all(held) if distinct else any(held)) else EPERM
    assert decide(program, "x86_64", "read", *args) == expected


@given(st.lists(condition, min_size=1, max_size=3), st.lists(st.integers(0, 0xFFFFFFFF), min_size=6, max_size=6))
def test_32_bit_programs_compare_the_low_half(conditions: list[Arg], args: list[int]) -> None:
    low = [Arg(c.index, c.value & 0xFFFFFFFF, c.value_two & 0xFFFFFFFF, c.op) for c in conditions]
    program = compile_profile(Profile(EPERM, (), (Rule(("read",), ALLOW, tuple(low)),)), 0, ARCHES["x86_64"], KERNEL)
    held = [OPERATORS[c.op](args[c.index], c.value, c.value_two) for c in low]
    distinct = len({c.index for c in low}) == len(low)
    expected = ALLOW if (all(held) if distinct else any(held)) else EPERM
    assert decide(program, "i386", "read", *args) == expected


@given(
    st.dictionaries(
        st.sampled_from(sorted(tables.numbers("x86_64"))),
        st.sampled_from([ALLOW, EPERM, KILL, 0x50000 | errno.EIO]),
        max_size=40,
    )
)
def test_every_number_gets_its_rule(actions: dict[str, int]) -> None:
    rules = tuple(Rule((name,), action) for name, action in actions.items())
    program = compile_profile(Profile(0x50000 | errno.EACCES, (), rules), 0, ARCHES["x86_64"], KERNEL)
    table = tables.numbers("x86_64")
    highest = max((table[name] for name in actions), default=-1)
    for name, number in table.items():
        expected = actions.get(name, 0x50000 | errno.EACCES if number <= highest else ENOSYS)
        assert decide(program, "x86_64", number) == expected


def test_rules_with_conditions_come_before_those_without() -> None:
    document = {
        "defaultAction": "SCMP_ACT_KILL",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["read"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 5,
                "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}],
            },
            {"names": ["read"], "action": "SCMP_ACT_LOG"},
        ],
    }
    assert decide(compiled(document), "x86_64", "read", 3) == 0x50005
    assert decide(compiled(document), "x86_64", "read", 4) == ALLOW
    assert decide(compiled(document), "x86_64", 600) == 0  # a default that is no errno stands


def test_conditions_on_the_host() -> None:
    def program(key: str, condition: Mapping[str, object], caps: int = 0, kernel: tuple[int, int] = (5, 15)) -> bytes:
        rule = {"names": ["read", "mseal"], "action": "SCMP_ACT_ALLOW", key: condition}
        return compiled({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}, caps, kernel=kernel)

    admin = 1 << capabilities.NUMBERS["SYS_ADMIN"]
    both = {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}
    for made, expected in [
        (program("includes", {"caps": ["CAP_SYS_ADMIN"]}), EPERM),
        (program("includes", {"caps": ["CAP_SYS_ADMIN"]}, admin), ALLOW),
        (program("includes", both, admin), EPERM),
        (program("includes", both, admin | 1), ALLOW),
        (program("excludes", both, admin), EPERM),
        (program("excludes", both), ALLOW),
        (program("includes", {"caps": ["CAP_NEVER_HEARD"]}, capabilities.ALL), EPERM),
        (program("includes", {"arches": ["amd64", "x32"]}), ALLOW),
        (program("includes", {"arches": ["arm64"]}), EPERM),
        (program("excludes", {"arches": ["arm64"]}), ALLOW),
        (program("includes", {"minKernel": "5.16"}), EPERM),
        (program("includes", {"minKernel": "5.15"}), ALLOW),
        (program("includes", {"minKernel": "5.9"}), ALLOW),
    ]:
        assert decide(made, "x86_64", "read") == expected


def test_names_that_no_architecture_knows_mean_nothing() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["riscv_hwprobe"], "action": "SCMP_ACT_KILL"}],
    }
    assert decide(compiled(document), "x86_64", "read") == ALLOW


def test_a_program_that_is_too_long_is_refused() -> None:
    args = [{"index": n % 6, "value": n, "op": "SCMP_CMP_EQ"} for n in range(600)]
    rule = {"names": ["read", "write", "close"], "action": "SCMP_ACT_ERRNO", "args": args}
    with pytest.raises(InvalidArgumentError, match="the kernel takes 4096"):
        compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


def test_a_long_list_of_conditions_still_reaches() -> None:
    args = [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"} for n in range(0, 600, 2)]
    program = compiled(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args}],
        }
    )
    assert [decide(program, "x86_64", "read", n) for n in (0, 1, 298, 299, 598, 599)] == [EPERM, ALLOW] * 3


def test_the_same_question_is_answered_from_the_cache() -> None:
    assert default("x86_64") is default("x86_64")
    assert default("x86_64") != default("x86_64", 0)


def test_a_profile_from_json_compiles_like_the_built_one() -> None:
    text = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW"}]})
    built = Profile(EPERM, (), (Rule(("read",), ALLOW),))
    assert compiled(json.loads(text)) == compile_profile(built, 0, ARCHES["x86_64"], KERNEL)
