"""What a guest's console means: which checks passed, and whether it came to its end."""

import pytest

from tests.vm.report import Report


def heard(*lines: str) -> tuple[Report, list[str]]:
    report = Report()
    return report, [said for said in map(report.hear, lines) if said]


def test_all_passed() -> None:
    lines = (
        "booting",
        "@@guest ok install (3 s)",
        "[ 1.2] noise@@guest ok pull",
        "@@guest skip x: lacks y",
        "@@guest end",
    )
    report, said = heard(*lines)
    assert said == ["  ok    install (3 s)", "  ok    pull", "  skip  x: lacks y"]
    assert report.good
    assert report.summary("guest") == "guest: 2 passed, 0 failed, 1 skipped"


def test_a_failure_shows_what_was_seen() -> None:
    report, said = heard("@@guest ok a", "@@guest fail b: is 1, should be 2", "@@guest | the log", "@@guest end")
    assert said == ["  ok    a", "  FAIL  b: is 1, should be 2", "        the log"]
    assert not report.good
    assert report.summary("guest") == "guest: 1 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("lines", [(), ("@@guest ok a",), ("Kernel panic",)])
def test_a_guest_that_does_not_come_to_its_end_has_failed(lines: tuple[str, ...]) -> None:
    report, _ = heard(*lines)
    assert not report.good
    assert (
        report.summary("guest")
        == f"guest: {len(report.passed)} passed, 1 failed, 0 skipped (it did not come to its end)"
    )


def test_a_guest_that_checked_nothing_is_no_success() -> None:
    assert not heard("@@guest end")[0].good
