"""Capability names and sets."""

import re
from pathlib import Path

import pytest

from crishim.linux import capabilities as caps

HEADER = Path("/usr/include/linux/capability.h")


def test_numbers_are_the_kernels() -> None:
    if not HEADER.exists():
        pytest.skip("lacks the kernel's headers (Debian package linux-libc-dev)")
    defined = {n: int(v) for n, v in re.findall(r"^#define CAP_(\w+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE)}
    assert {name: caps.NUMBERS.get(name) for name in defined} == defined


def test_there_are_41() -> None:
    assert len(caps.NUMBERS) == 41
    assert caps.ALL == (1 << 41) - 1


def test_the_default_set_is_the_fields() -> None:
    assert caps.DEFAULT_MASK == 0xA80425FB
    assert len(caps.DEFAULT) == 14


@pytest.mark.parametrize("name", ["NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin", "Net_Admin", " NET_ADMIN "])
def test_a_name_in_any_form(name: str) -> None:
    assert caps.parse([name]) == (1 << 12, ())


def test_all_and_unknown_names() -> None:
    assert caps.parse(["ALL"]) == (caps.ALL, ())
    assert caps.parse(["all", "CAP_FLY", "CHOWN", ""]) == (caps.ALL, ("CAP_FLY", ""))


def test_names_and_sets_are_inverse() -> None:
    assert caps.names(caps.DEFAULT_MASK)[0] == "CAP_CHOWN"
    assert caps.parse(caps.names(caps.ALL)) == (caps.ALL, ())


@pytest.mark.parametrize(
    ("add", "drop", "result"),
    [
        ((), (), caps.DEFAULT_MASK),
        (("NET_ADMIN",), (), caps.DEFAULT_MASK | 1 << 12),
        ((), ("ALL",), 0),
        (("NET_BIND_SERVICE",), ("ALL",), 1 << 10),
        (("ALL",), ("SYS_ADMIN",), caps.ALL & ~(1 << 21)),
        (("CHOWN",), ("cap_chown",), caps.DEFAULT_MASK & ~1),
        (("ALL",), ("ALL",), 0),
    ],
)
def test_add_and_drop(add: tuple[str, ...], drop: tuple[str, ...], result: int) -> None:
    assert caps.adjust(caps.DEFAULT_MASK, add, drop) == result


def test_sets_of_this_process() -> None:
    sets = caps.read_sets()
    assert sets.keys() == {"Inh", "Prm", "Eff", "Bnd", "Amb"}
    assert sets["Eff"] & ~sets["Prm"] == 0
    assert caps.bounding() == sets["Bnd"] & caps.ALL
    assert caps.last() >= 40
