"""Summaries, verdicts and the two forms of the report."""

import json

from scripts.benchlib import report
from scripts.benchlib.measure import Samples, summarise
from scripts.benchlib.rows import CONTAINERD, CRIO, FLOOR, NAMES, ROWS, SUBJECT, Row, judge

LESS = Row("less", "ms", "a time", budget=12, factor=10)
MORE = Row("more", "MB/s", "a rate", budget=250, more=True)
FLOORED = Row("floored", "ms", "a multiple", reference=FLOOR, multiple=2)


def test_a_summary_names_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    found = summarise(values)
    assert (found.least, found.median, found.p99, found.largest, found.count) == (1.0, 50.5, 99.0, 100.0, 100)
    one = summarise([3.0])
    assert (one.least, one.median, one.p99, one.largest, one.count) == (3.0, 3.0, 3.0, 3.0, 1)


def test_less_is_met_by_budget_and_factor() -> None:
    fast = judge(LESS, {SUBJECT: summarise([10.0]), CONTAINERD: summarise([120.0])})
    assert (fast.budget, fast.met, fast.ratio) == (12, True, 12.0)
    near = judge(LESS, {SUBJECT: summarise([10.0]), CONTAINERD: summarise([99.0])})
    assert near.met is False
    over = judge(LESS, {SUBJECT: summarise([13.0]), CONTAINERD: summarise([1300.0])})
    assert over.met is False


def test_without_a_peer_the_budget_alone_decides() -> None:
    alone = judge(LESS, {SUBJECT: summarise([10.0])})
    assert (alone.met, alone.ratio) == (True, None)


def test_a_factor_alone_is_a_budget() -> None:
    row = Row("x", "s", "", factor=1 / 0.6)
    assert judge(row, {SUBJECT: summarise([2.7]), CONTAINERD: summarise([4.6])}).met is True
    assert judge(row, {SUBJECT: summarise([2.8]), CONTAINERD: summarise([4.6])}).met is False
    assert judge(row, {SUBJECT: summarise([2.8])}).met is None


def test_more_is_better_where_the_row_says_so() -> None:
    found = judge(MORE, {SUBJECT: summarise([300.0]), CONTAINERD: summarise([60.0])})
    assert (found.met, found.ratio) == (True, 5.0)
    assert judge(MORE, {SUBJECT: summarise([200.0])}).met is False


def test_a_multiple_is_measured_against_its_reference() -> None:
    found = judge(FLOORED, {SUBJECT: summarise([5.0]), FLOOR: summarise([2.5])})
    assert (found.budget, found.met, found.ratio) == (5.0, True, 2.0)
    unknown = judge(FLOORED, {SUBJECT: summarise([5.0])})
    assert (unknown.budget, unknown.met, unknown.ratio) == (None, None, None)


def test_what_was_not_measured_has_no_verdict() -> None:
    found = judge(LESS, {CONTAINERD: summarise([120.0])})
    assert (found.met, found.ratio) == (None, None)


def test_the_document_has_the_promised_shape() -> None:
    samples = Samples()
    samples.add("pod-start", SUBJECT, 10.0, 11.0, 12.0)
    samples.add("pod-start", CONTAINERD, 130.0)
    document = json.loads(json.dumps(report.document(ROWS, samples)))
    assert list(document) == ["rows"]
    assert [row["name"] for row in document["rows"]] == list(NAMES)
    for row in document["rows"]:
        assert list(row) == ["name", "unit", "budget", "met", "ratio", "systems"]
        for cells in row["systems"].values():
            assert list(cells) == ["min", "median", "p99", "max", "n"]
    start = next(row for row in document["rows"] if row["name"] == "pod-start")
    assert start["systems"][SUBJECT] == {"min": 10.0, "median": 11.0, "p99": 12.0, "max": 12.0, "n": 3}
    assert (start["budget"], start["met"], start["ratio"]) == (12, True, 11.8182)
    empty = next(row for row in document["rows"] if row["name"] == "log")
    assert (empty["systems"], empty["met"]) == ({}, None)


def test_another_runtime_has_cells_and_a_ratio_but_no_say_in_the_verdict() -> None:
    samples = Samples()
    for system, value in ((SUBJECT, 10.0), (CONTAINERD, 120.0), (CRIO, 15.0)):
        samples.add("pod-start", system, value)
    rows = [row for row in ROWS if row.name == "pod-start"]
    lines = report.table(rows, samples).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["yes", "less", "less"]
    assert CRIO in lines[4]
    assert "crishim 1.5x less" in lines[4]
    entry = report.document(rows, samples)["rows"][0]
    assert entry["systems"][CRIO]["median"] == 15.0
    assert (entry["met"], entry["ratio"]) == (True, 12.0)


def test_the_table_shows_each_system_and_the_notes() -> None:
    samples = Samples()
    samples.add("engine", SUBJECT, 5.0)
    samples.add("engine", FLOOR, 2.5)
    samples.note("crun cannot be installed here: its cells stay empty")
    text = report.table([row for row in ROWS if row.name in {"engine", "log"}], samples)
    lines = text.splitlines()
    assert lines[0].split() == ["row", "system", "min", "median", "p99", "max", "n", "ratio", "budget", "met"]
    assert "<= 5 (2x C floor)" in lines[2]
    assert lines[2].endswith("yes")
    assert "crishim 2.00x" in lines[3]
    assert "not measured" in lines[4]
    assert lines[-1] == "note: crun cannot be installed here: its cells stay empty"
