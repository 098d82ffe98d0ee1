"""critest v1.37.0, the CRI's conformance suite, whole, against a private instance.

`passing.txt` beside this file names the specs that pass: one of them that fails fails this test, and so does one
outside it that passes. A spec leaves it only if it passed without what it tests.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.conformance.critest import build, report, suite
from tests.support.abilities import need_containers
from tests.support.instance import Instance
from tests.support.registry import Registry

_PASSING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "passing.txt")


@pytest.fixture
def critest_instance(registry: Registry, test_leaks: None) -> Iterator[Instance]:
    """Return an instance that pulls the specs' images from the loopback registry."""
    need_containers()
    suite.need_critest()
    with tempfile.TemporaryDirectory(prefix="ctcerts") as certs:
        directory = suite.serve(registry, build.layouts(), f"{certs}/certs.d")
        made = Instance(f'[images]\ncerts_d = ["{directory}"]\n')
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_specs_pass_as_listed(critest_instance: Instance, capfd: pytest.CaptureFixture[str]) -> None:
    """Run all specs at once and compare them with the list."""
    with open(_PASSING, encoding="utf-8") as file:
        listed = report.expected(file.read())
    outcomes = suite.run(critest_instance)
    with capfd.disabled():
        print(f"\n{report.summary(outcomes)}")
    wrong = report.problems(outcomes, listed)
    assert not wrong, report.summary(outcomes) + "\n" + "\n".join(wrong)
