"""What the image commands print: tables, sizes, ages, lines and bars."""

import io
from datetime import UTC, datetime

import pytest

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim.cli import images, progress, table
from crishim.errors import InternalError

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"), (999, "999B"), (1000, "1kB"), (1234, "1.23kB"), (12_345, "12.3kB"), (99_949, "99.9kB"),
        (99_951, "100kB"), (999_499, "999kB"), (999_600, "1MB"), (45_000_000_000, "45GB"), (10**18, "1000PB"),
    ],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert table.size(count) == text


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("2026-11-27T11:59:30Z", "now"),
        ("2026-11-27T11:59:00Z", "1 minute ago"),
        ("2026-11-27T09:00:00.123456789Z", "2 hours ago"),
        ("2026-11-26T12:00:00+00:00", "1 day ago"),
        ("2026-11-01T12:00:00", "3 weeks ago"),
        ("2026-09-01T12:00:00Z", "2 months ago"),
        ("1970-01-01T00:00:00Z", "56 years ago"),
        ("2027-01-01T00:00:00Z", "in the future"),
        ("", ""),
        ("yesterday", ""),
    ],
)
def test_ages(created: str, text: str) -> None:
    assert table.age(created, NOW) == text


def test_a_table_is_aligned_and_safe() -> None:
    assert table.render(["A", "LONG"], [["x" * 4, "y"], ["\x1b[2J", ""]]) == "A      LONG\nxxxx   y\n?[2J"
    assert table.render(["A"], []) == "A"


def listing(*found: pb.Image, digests: bool = False) -> list[list[str]]:
    return [line.split() for line in images.listing(found, digests=digests, whole=False, now=NOW).split("\n")]


def test_a_line_for_each_tag_and_for_repositories_without_one() -> None:
    image = pb.Image(id=ONE, tags=["r.io/a:1", "r.io:5000/b:2"], digests=[f"r.io/a@{TWO}", f"r.io/c@{TWO}"], size=2000)
    assert listing(image)[1:] == [
        ["r.io/a", "1", "1" * 12, "2kB"],
        ["r.io:5000/b", "2", "1" * 12, "2kB"],
        ["r.io/c", "<none>", "1" * 12, "2kB"],
    ]
    assert [line[2] for line in listing(image, digests=True)[1:]] == [TWO, "<none>", TWO]
    assert listing(pb.Image(id=TWO, size=1))[1:] == [["<none>", "<none>", "2" * 12, "1B"]]


ITEMS = [
    pb.Item(id=ONE, kind="layer", state=pb.STATE_TRANSFERRING, current=5, total=1000),
    pb.Item(id=ONE, kind="layer", state=pb.STATE_DONE, current=1000, total=1000),
    pb.Item(id=TWO, kind="config", state=pb.STATE_MOUNTED),
]


def test_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    with progress.display(quiet=False, stream=stream) as display:
        display.show(ITEMS)
    assert stream.getvalue() == (f"layer {'1' * 12}: done, 1kB\nconfig {'2' * 12}: mounted from another repository\n")


def test_bars_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress.display(quiet=False, stream=stream) as display:
        for item in ITEMS:
            display.show([item])
    assert "1" * 12 in stream.getvalue()
    assert "mounted from another repository" in stream.getvalue()


def test_nothing_on_request() -> None:
    stream = io.StringIO()
    with progress.display(quiet=True, stream=stream) as display:
        display.show(ITEMS)
    assert stream.getvalue() == ""


def test_a_stream_must_end_with_a_result() -> None:
    display = progress.Nothing()
    done = [pb.PullResponse(progress=pb.Progress(items=ITEMS)), pb.PullResponse(result=pb.PullResult(id=ONE))]
    assert progress.follow(done, display).id == ONE
    with pytest.raises(InternalError, match="without a result"):
        progress.follow(done[:1], display)


def test_every_state_has_a_word() -> None:
    assert set(pb.State.values()) - {pb.STATE_UNSPECIFIED} == set(progress.WORDS)
