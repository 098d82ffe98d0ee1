"""A seccomp profile → the bytes of a classic BPF program, for one container on one kind of host. Pure.

What decides a call:

1. The architecture. One that the profile does not list ends the process.
2. A number that no rule could have meant: unknown to our tables, or newer than every call that the profile names.
   Where the default is an errno, such a call gives ENOSYS, so that a C library falls back to an older call
   (runtime-spec#1122). Any other default action stands.
3. The rules that name the call, those with conditions on arguments first, in the profile's order; then the first one
   without; then the default action. A rule that repeats an index of an argument holds if any of its conditions
   does, else all must hold (as the field's runtimes read it).

Call numbers of equal outcome form ranges, found by binary search: about nine comparisons; and the kernel keeps a
bitmap of calls that are allowed whatever their arguments (since 5.11), which this form of program lets it compute.

Sources: seccomp(2), linux/seccomp.h, admin-guide `userspace-api/seccomp_filter.rst` (x32 and architecture check).
"""

import errno
from collections.abc import Iterable, Sequence
from functools import lru_cache

from crishim.errors import InvalidArgumentError
from crishim.linux import capabilities
from crishim.linux.arch import ARCHES, Arch
from crishim.linux.seccomp import program as bpf
from crishim.linux.seccomp import tables
from crishim.linux.seccomp.outcome import JEQ
from crishim.linux.seccomp.profile import ACTIONS, Arg, Profile, Rule

_DATA = 0xFFFF
_ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
_KILL = ACTIONS["SCMP_ACT_KILL_PROCESS"]

Plan = tuple[tuple[tuple[tuple[Arg, ...], int], ...], int]
"""Outcome of one call: ((conditions, action) in order, action otherwise)."""


@lru_cache(maxsize=64)
def compile_profile(profile: Profile, caps: int, arch: Arch, kernel: tuple[int, int]) -> bytes:
    """Return the filter program, from a cache of the last 64 where it can (a hit costs some µs).

    Args:
        profile: what to compile.
        caps: the container's bounding set, which decides about rules for capabilities.
        arch: the host's architecture.
        kernel: its version, like (6, 18).

    Raises:
        InvalidArgumentError: the program is longer than the kernel takes.
    """
    return bpf.encode(_program(profile, caps, arch, kernel))


def _program(profile: Profile, caps: int, arch: Arch, kernel: tuple[int, int]) -> list[bpf.Insn]:
    rules = [rule for rule in profile.rules if _counts(rule, caps, arch, kernel)]
    wanted = _architectures(profile, arch)
    sections: list[tuple[int, list[bpf.Insn]]] = []
    if arch.machine in wanted:
        leaves = _leaves(profile, rules, arch.machine)
        if arch.machine == "x86_64":
            # x32 shares the audit architecture; its bit in the number tells it apart.
            leaves += _leaves(profile, rules, "x32") if "x32" in wanted else [(tables.X32_BIT, ((), _ENOSYS))]
        sections.append((arch.audit, _section(leaves, wide=True)))
    sections += [
        (ARCHES[name].audit, _section(_leaves(profile, rules, name), wide=False))
        for name in wanted
        if name not in {arch.machine, "x32"}
    ]
    code = bpf.ret(_KILL)
    for audit, section in reversed(sections):
        code = bpf.choose(JEQ, audit, section, code)
    code = [bpf.load(bpf.OFF_ARCH), *code]
    if len(code) > bpf.MAX_INSTRUCTIONS:
        raise InvalidArgumentError(
            "seccomp", f"the profile needs {len(code)} instructions, the kernel takes {bpf.MAX_INSTRUCTIONS}"
        )
    return code


def _architectures(profile: Profile, arch: Arch) -> list[str]:
    """Return the machines that the filter lets run, the native one first."""
    own = [arch.machine, *arch.subs]
    if not profile.architectures:
        return own
    return [name for name in own if ARCHES[name].scmp in profile.architectures]


def _counts(rule: Rule, caps: int, arch: Arch, kernel: tuple[int, int]) -> bool:
    """Tell whether a rule's conditions on container and host hold: all of `includes`, none of `excludes`."""
    include, exclude = rule.includes, rule.excludes
    if not all(_held(name, caps) for name in include.caps) or any(_held(name, caps) for name in exclude.caps):
        return False
    if (include.arches and not _is_one_of(arch, include.arches)) or _is_one_of(arch, exclude.arches):
        return False
    if include.min_kernel is not None and kernel < include.min_kernel:
        return False
    return exclude.min_kernel is None or kernel < exclude.min_kernel


def _held(name: str, caps: int) -> bool:
    plain = capabilities.canonical(name)
    return plain in capabilities.NUMBERS and capabilities.has(caps, plain)


def _is_one_of(arch: Arch, names: Iterable[str]) -> bool:
    return any(name in {arch.oci, arch.machine, arch.scmp} for name in names)


def _leaves(profile: Profile, rules: Sequence[Rule], machine: str) -> list[tuple[int, Plan]]:
    """Return (first number, outcome) ascending, for all numbers of one architecture; neighbours differ."""
    table = tables.numbers(machine)
    is_errno = profile.default_action & ~_DATA == ACTIONS["SCMP_ACT_ERRNO"]
    default: Plan = ((), profile.default_action)
    unknown: Plan = ((), _ENOSYS) if is_errno else default
    by_name = _outcomes(rules, profile.default_action)
    named = {name for rule in profile.rules for name in rule.names}
    highest = max((n for name, n in table.items() if name in named and not _is_apart(n)), default=-1)
    first = tables.X32_BIT if machine == "x32" else 0
    points: dict[int, Plan] = {first: unknown}
    for name, number in sorted(table.items(), key=lambda item: item[1]):
        newer = number > highest and not _is_apart(number)
        points[number] = unknown if newer else by_name.get(name, default)
        points.setdefault(number + 1, unknown)
    leaves: list[tuple[int, Plan]] = []
    for number in sorted(points):
        if not leaves or leaves[-1][1] != points[number]:
            leaves.append((number, points[number]))
    return leaves


def _is_apart(number: int) -> bool:
    """Tell whether a number stands apart from the common order of age: ARM's private calls, x32's own from 512."""
    if number >= tables.X32_BIT:
        return number >= tables.X32_BIT + tables.X32_OWN
    return number >= tables.ARM_PRIVATE


def _outcomes(rules: Sequence[Rule], default: int) -> dict[str, Plan]:
    """Return the outcome of each name that a rule names."""
    conditional: dict[str, list[tuple[tuple[Arg, ...], int]]] = {}
    plain: dict[str, int] = {}
    for rule in rules:
        for name in rule.names:
            if rule.args:
                conditional.setdefault(name, []).extend((args, rule.action) for args in _alternatives(rule.args))
            else:
                plain.setdefault(name, rule.action)
    return {name: (tuple(conditional.get(name, ())), plain.get(name, default)) for name in conditional | plain}


def _alternatives(args: tuple[Arg, ...]) -> list[tuple[Arg, ...]]:
    """Return the groups of conditions of which one must hold whole."""
    if len({arg.index for arg in args}) == len(args):
        return [args]
    return [(arg,) for arg in args]


def _section(leaves: Sequence[tuple[int, Plan]], *, wide: bool) -> list[bpf.Insn]:
    blocks = []
    for number, (conditional, otherwise) in leaves:
        code = bpf.ret(otherwise)
        for args, action in reversed(conditional):
            code = bpf.guarded(args, bpf.ret(action), code, wide=wide)
        blocks.append((number, code))
    return [bpf.load(bpf.OFF_NUMBER), *bpf.tree(blocks)]
