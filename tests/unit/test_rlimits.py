"""Resource limits: names, the configured form, clamping."""

import resource

import pytest

from crishim.errors import InvalidArgumentError
from crishim.linux import rlimits
from crishim.linux.rlimits import INFINITY, NUMBERS, Rlimit


def test_numbers_are_pythons_own() -> None:
    assert all(getattr(resource, f"RLIMIT_{name}", number) == number for name, number in NUMBERS.items())
    assert resource.RLIM_INFINITY == INFINITY


@pytest.mark.parametrize("name", ["nofile", "RLIMIT_NOFILE", "rlimit_nofile", "NoFile"])
def test_a_name_in_any_form(name: str) -> None:
    assert rlimits.number(name) == resource.RLIMIT_NOFILE


def test_unknown_name() -> None:
    assert rlimits.number("nofiles") is None
    assert rlimits.name_of(7) == "RLIMIT_NOFILE"
    assert rlimits.name_of(99) == "RLIMIT_99"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024:524288", Rlimit(7, 1024, 524288)),
        ("core=unlimited", Rlimit(4, INFINITY, INFINITY)),
        ("nproc=5:unlimited", Rlimit(6, 5, INFINITY)),
        ("nproc=5", Rlimit(6, 5, 5)),
    ],
)
def test_parse(text: str, limit: Rlimit) -> None:
    assert rlimits.parse(text) == limit


@pytest.mark.parametrize("text", ["", "nofile", "nofile=", "files=1", "nofile=a", "nofile=-1", "core=2:1"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rlimits.parse(text)


def test_unlimited_soft_above_a_hard_number_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="soft limit is above the hard"):
        rlimits.parse("nofile=unlimited:100")


def test_a_containers_limits_are_the_kernels_with_the_configured_ones_in_place() -> None:
    limits = {limit.resource: limit for limit in rlimits.container(["nofile=10:20"], 9000)}
    assert limits[7] == Rlimit(7, 10, 20)
    assert limits[NUMBERS["STACK"]] == Rlimit(3, 8 << 20, INFINITY)
    assert list(limits) == sorted(limits)
    assert limits[NUMBERS["NPROC"]] == Rlimit(6, 4500, 4500)


def test_clamp_without_the_capability() -> None:
    hard = {7: 20_000, 4: INFINITY}.__getitem__
    wanted = (Rlimit(7, 1024, 524_288), Rlimit(4, 0, INFINITY))
    assert rlimits.clamp(wanted, hard, may_raise=False) == (
        (Rlimit(7, 1024, 20_000), Rlimit(4, 0, INFINITY)),
        ("RLIMIT_NOFILE",),
    )
    assert rlimits.clamp(wanted, hard, may_raise=True) == (wanted, ())


def test_clamp_lowers_the_soft_limit_too() -> None:
    wanted = (Rlimit(7, INFINITY, INFINITY),)
    assert rlimits.clamp(wanted, lambda _: 100, may_raise=False) == ((Rlimit(7, 100, 100),), ("RLIMIT_NOFILE",))
