"""critest's report, the list of specs that pass, and what its images are made from."""

import pathlib

import pytest

from tests.conformance.critest import compiled, report
from tests.conformance.critest.packages import source_lines

_REPORT = """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="CRI validation">
<testcase name="[BeforeSuite]" status="passed"></testcase>
<testcase name="[It] [k8s.io] Pod should run [Conformance]" status="passed"></testcase>
<testcase name="[It] [k8s.io] Pod should stop" status="failed"><failure message="no
 way"/></testcase>
<testcase name="[It] [k8s.io] Pod should panic" status="panicked"><error message="panic"/></testcase>
<testcase name="[It] [k8s.io] Pod should wait" status="skipped"><skipped message="off on this host"/></testcase>
<testcase name="[It] [k8s.io] Pod should sleep" status="skipped"><skipped message="skipped - runtime"/></testcase>
<testcase name="[It] [k8s.io] [benchmark] Pod" status="skipped"><skipped message="skipped"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def outcomes(tmp_path: pathlib.Path) -> dict[str, report.Outcome]:
    path = tmp_path / "junit.xml"
    path.write_text(_REPORT, encoding="utf-8")
    return report.read(str(path))


def test_the_report_tells_each_specs_outcome(outcomes: dict[str, report.Outcome]) -> None:
    assert outcomes == {
        "Pod should run [Conformance]": report.Outcome("passed", ""),
        "Pod should stop": report.Outcome("failed", "no way"),
        "Pod should panic": report.Outcome("failed", "panic"),
        "Pod should wait": report.Outcome("skipped", "off on this host"),
        "Pod should sleep": report.Outcome("skipped", "skipped - runtime"),
    }
    assert report.summary(outcomes) == "critest: 1 passed, 2 failed, 2 skipped"


def test_the_list_is_kept_in_both_directions(outcomes: dict[str, report.Outcome]) -> None:
    text = "# a comment\n\nPod should run [Conformance]\n"
    assert report.problems(outcomes, report.expected(text)) == []
    assert report.problems(outcomes, ["Pod should wait", "Pod should run [Conformance]"]) == []
    assert report.problems(outcomes, ["Pod should stop", "Pod should fly", "Pod should sleep"]) == [
        "listed, but critest has no such spec: Pod should fly",
        "listed, but skipped: Pod should sleep: skipped - runtime",
        "listed, but failed: Pod should stop: no way",
        "passed, but is not listed (add it to passing.txt): Pod should run [Conformance]",
    ]


def test_the_list_is_sorted_and_names_each_spec_once() -> None:
    path = pathlib.Path(__file__).parent.parent / "conformance" / "passing.txt"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    assert len(lines) >= 60


def test_sources_come_from_the_mirrors_that_the_machine_has() -> None:
    one_line = "deb [arch=amd64] http://mirror.example/debian bookworm main\n# deb http://x.example/debian a b\n"
    deb822 = (
        "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: x\nComponents: main\n"
    )
    other = "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\nComponents: main\n"
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert source_lines([one_line, deb822, other]) == [
        "deb-src [arch=amd64] http://mirror.example/debian bookworm main",
        f"deb-src {key} http://deb.debian.org/debian bookworm main",
        f"deb-src {key} http://deb.debian.org/debian bookworm-updates main",
    ]


def test_busybox_is_built_static_and_without_tc() -> None:
    text = "CONFIG_ASH=y\n# CONFIG_STATIC is not set\nCONFIG_TC=y\nCONFIG_TCPSVD=y\n"
    assert compiled.configure(text) == "CONFIG_ASH=y\nCONFIG_STATIC=y\n# CONFIG_TC is not set\nCONFIG_TCPSVD=y\n"
