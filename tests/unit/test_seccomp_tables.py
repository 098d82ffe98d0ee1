"""System call numbers against the kernel's headers."""

import re
from pathlib import Path

import pytest

from crishim.linux.seccomp import tables
from crishim.linux.seccomp.default import default_profile

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
GENERIC = Path("/usr/include/asm-generic/unistd.h")
SUFFIX = {"x86_64": "64", "i386": "32", "x32": "x32"}


@pytest.mark.parametrize("arch", SUFFIX)
def test_x86_numbers_are_the_headers(arch: str) -> None:
    header = HEADERS / f"unistd_{SUFFIX[arch]}.h"
    if not header.exists():
        pytest.skip("lacks the kernel's x86 headers (Debian package linux-libc-dev)")
    pattern = r"^#define __NR_(\w+)\s+(?:\(__X32_SYSCALL_BIT \+ )?(\d+)\)?$"
    bit = tables.X32_BIT if arch == "x32" else 0
    defined = {n: int(v) | bit for n, v in re.findall(pattern, header.read_text(), re.MULTILINE)}
    assert len(defined) > 300
    assert {name: tables.numbers(arch).get(name) for name in defined} == defined


def test_arm64_numbers_are_the_generic_headers() -> None:
    if not GENERIC.exists():
        pytest.skip("lacks the kernel's headers (Debian package linux-libc-dev)")
    defined = {n: int(v) for n, v in re.findall(r"^#define __NR_(\w+)\s+(\d+)$", GENERIC.read_text(), re.MULTILINE)}
    ours = tables.numbers("aarch64")
    shared = defined.keys() & ours.keys()
    assert len(shared) > 280
    assert {name: ours[name] for name in shared} == {name: defined[name] for name in shared}


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "arm"])
def test_calls_from_424_on_are_the_same_everywhere(arch: str) -> None:
    new = {name: number for name, number in tables.numbers("x86_64").items() if 424 <= number < 1000}
    table = tables.numbers(arch)
    assert {name: table.get(name, number) for name, number in new.items()} == new


def test_every_name_of_the_default_profile_is_a_system_call() -> None:
    named = {name for rule in default_profile().rules for name in rule.names}
    assert named - tables.all_names() == set()
