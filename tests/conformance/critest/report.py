"""What critest's JUnit report says, and how it compares with the list of specs that pass. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_STATES = {"passed": PASSED, "skipped": SKIPPED, "pending": SKIPPED}
_SPEC = "[It] "
_OTHER_SUITE = "benchmark"
_HOST_LACKS = ("on this host", "ID mapping is not supported", "SELinux")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one spec ended; `reason` is the failure's text or why it was skipped."""

    state: str
    reason: str


def read(path: str) -> dict[str, Outcome]:
    """Return spec → outcome from the report at `path`; benchmarks, which are another suite, are left out.

    Source: ginkgo's `reporters/junit_report.go`: each testcase has a `status` attribute, and a child `failure`, `error`
    or `skipped`.
    """
    tree = ET.parse(path)  # critest wrote it a moment ago
    found = {}
    for case in tree.iter("testcase"):
        name = case.get("name", "")
        if not name.startswith(_SPEC) or _OTHER_SUITE in name:
            continue
        found[_plain(name)] = Outcome(_STATES.get(case.get("status", ""), FAILED), _reason(case))
    return found


def _plain(name: str) -> str:
    return " ".join(name.removeprefix(_SPEC).replace("[k8s.io] ", "").split())


def _reason(case: ET.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        child = case.find(kind)
        if child is not None:
            return " ".join((child.get("message") or child.text or kind).split())
    return ""


def expected(text: str) -> set[str]:
    """Return the specs that `passing.txt` names: one a line, `#` begins a comment."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if line and not line.startswith("#")}


def summary(outcomes: dict[str, Outcome]) -> str:
    """Return the closing line."""
    states = [outcome.state for outcome in outcomes.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in (PASSED, FAILED, SKIPPED)).join(("critest: ", ""))


def problems(outcomes: dict[str, Outcome], listed: Iterable[str]) -> list[str]:
    """Return what is not as the list has it.

    A listed spec that failed, was skipped or is not there, and a spec outside of the list that passed. Only what the
    machine lacks excuses a skip: critest also skips what it takes the runtime to lack.
    """
    names = set(listed)
    found = []
    for name in sorted(names):
        outcome = outcomes.get(name)
        if outcome is None:
            found.append(f"listed, but critest has no such spec: {name}")
        elif outcome.state == FAILED:
            found.append(f"listed, but failed: {name}: {outcome.reason[:600]}")
        elif outcome.state == SKIPPED and not any(text in outcome.reason for text in _HOST_LACKS):
            found.append(f"listed, but skipped: {name}: {outcome.reason}")
    passed = {name for name, outcome in outcomes.items() if outcome.state == PASSED}
    found += [f"passed, but is not listed (add it to passing.txt): {name}" for name in sorted(passed - names)]
    return found
