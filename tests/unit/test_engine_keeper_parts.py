"""The keeper's pure and small parts: log records, the journal, the loop, reports of failed steps."""

import errno
import json
import os
import re
import select
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine.execute.report import StepError, describe
from crishim.engine.keeper import journal
from crishim.engine.keeper.children import Children, Setup
from crishim.engine.keeper.logs import LogFile, Stream
from crishim.engine.keeper.loop import Loop
from crishim.engine.keeper.records import LINE_LIMIT, stamp

RECORD = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) ([^\n]*)\n")


def parsed(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return (stream, tag, text); every byte must belong to a record."""
    found = RECORD.findall(data)
    assert b"".join(b"%b %b %b %b\n" % record for record in found) == data
    return [record[1:] for record in found]


def joined(records: list[tuple[bytes, bytes, bytes]], stream: bytes = b"stdout") -> bytes:
    return b"".join(text + (b"\n" if tag == b"F" else b"") for name, tag, text in records if name == stream)


class Writer:
    """A log file with streams that are fed by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = LogFile(str(path))
        self.loop = Loop()
        self.streams: dict[str, Stream] = {}

    def feed(self, name: str, data: bytes) -> None:
        if name not in self.streams:
            reading, writing = os.pipe()
            os.close(writing)
            self.streams[name] = Stream(self.loop, reading, name, self.file)
        if data:
            self.streams[name].feed(data)

    def close(self) -> list[tuple[bytes, bytes, bytes]]:
        for stream in self.streams.values():
            stream.close()
        self.file.close()
        return parsed(self.path.read_bytes())


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "log")


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\n", b"\r\n", b"\0", "\u2028".encode(), b"\x0b\x0c\x85", b"\xff\xfe"]),
    st.tuples(st.sampled_from([b"x", b"\r", b"\0"]), st.sampled_from([16_383, 16_384, 16_385, 40_000])).map(
        lambda pair: pair[0] * pair[1]
    ),
)
chunks = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.lists(pieces, max_size=4).map(b"".join)), max_size=8
)


@given(chunks)
def test_records_stand_for_just_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, fed: list[tuple[str, bytes]]
) -> None:
    writer = Writer(tmp_path_factory.mktemp("log") / "log")
    for name, data in fed:
        writer.feed(name, data)
    records = writer.close()
    assert all(len(text) <= LINE_LIMIT for _, _, text in records)
    for name in ("stdout", "stderr"):
        assert joined(records, name.encode()) == b"".join(data for stream, data in fed if stream == name)


@given(st.lists(pieces, max_size=6).map(b"".join), st.integers(1, 20_000))
def test_cuts_of_the_input_do_not_show(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    whole, cut = (Writer(tmp_path_factory.mktemp("log") / name) for name in ("whole", "cut"))
    whole.feed("stdout", data)
    for start in range(0, len(data), size):
        cut.feed("stdout", data[start : start + size])
    first, second = whole.close(), cut.close()
    assert joined(first) == joined(second) == data
    # lines are whole lines, whatever came when: P only before more of the same line or at the very end
    assert [r for r in first if r[1] == b"F"][-1:] == [r for r in second if r[1] == b"F"][-1:]


@pytest.mark.parametrize(("size", "tags"), [(16_384, "F"), (16_385, "PF"), (32_768, "PF"), (32_769, "PPF"), (0, "F")])
def test_long_lines(writer: Writer, size: int, tags: str) -> None:
    writer.feed("stdout", b"x" * size + b"\n")
    assert [tag.decode() for _, tag, _ in writer.close()] == list(tags)


def test_tail_is_a_partial_record(writer: Writer) -> None:
    writer.feed("stdout", b"hi")
    assert writer.path.read_bytes() == b""  # a slow line is not flushed early
    writer.feed("stderr", b"other\n")
    writer.feed("stdout", b" there")
    assert writer.close() == [(b"stderr", b"F", b"other"), (b"stdout", b"P", b"hi there")]


def test_streams_read_to_their_end(tmp_path: Path) -> None:
    loop = Loop()
    file = LogFile(str(tmp_path / "log"))
    reading, writing = os.pipe()
    stream = Stream(loop, reading, "stdout", file)
    os.write(writing, b"one\ntw")
    stream.drain()  # the writer may be there still: what is in the pipe is taken
    assert stream.fd == -1
    os.close(writing)
    file.close()
    assert parsed((tmp_path / "log").read_bytes()) == [(b"stdout", b"F", b"one"), (b"stdout", b"P", b"tw")]
    stream.drain()


def test_log_file_reopens_and_refuses_links(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(str(path))
    file.write([b"one\n"], file.end())
    path.rename(tmp_path / "log.1")
    file.write([b"still\n"], file.end())
    file.reopen()
    file.write([b"two\n"], file.end())
    assert (tmp_path / "log.1").read_bytes() == b"one\nstill\n"
    assert path.read_bytes() == b"two\n"
    path.unlink()
    path.symlink_to(tmp_path / "log.1")
    with pytest.raises(StepError, match="symbolic"):
        file.reopen()
    file.write([b"three\n"], file.end())  # the old file stays in use
    file.close()
    assert (tmp_path / "log.1").read_bytes() == b"one\nstill\n"
    nowhere = LogFile("")
    nowhere.write([b"dropped\n"], nowhere.end())
    nowhere.reopen()
    nowhere.close()


def test_timestamps() -> None:
    stamps = [stamp(time.time_ns()) for _ in range(50)]
    assert stamps == sorted(stamps)
    assert all(re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)


# --- journal --------------------------------------------------------------------------------------


def test_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    book = journal.Journal(path)
    assert journal.read(path) == []
    first, second = book.add({"container": "a"}), book.add({"container": "b"})
    assert (first["seq"], second["seq"]) == (1, 2)
    assert journal.read(path) == book.pending() == [first, second]
    book.acknowledge(1)
    assert book.pending() == [second]
    book.acknowledge(1)
    book.acknowledge(7)
    assert book.pending() == journal.read(path) == []
    assert book.add({"container": "c"})["seq"] == 3


@given(st.integers(0, 200))
def test_journal_that_was_cut_off(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    book = journal.Journal(str(path))
    entries = [book.add({"container": str(n), "status": n}) for n in range(4)]
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert journal.read(str(path)) == entries[: len(journal.read(str(path)))]
    assert journal.read(str(path.parent / "none")) == []


def test_journal_on_a_full_disk_keeps_its_entries() -> None:
    book = journal.Journal("/dev/full")
    entry = book.add({"container": "a"})
    assert book.pending() == [entry]


# --- loop -----------------------------------------------------------------------------------------


def test_loop_goes_on_after_a_fault(capfd: pytest.CaptureFixture[str]) -> None:
    loop = Loop()
    reading, writing = os.pipe()
    seen: list[str] = []

    def fails() -> None:
        seen.append("first")
        raise ValueError("a fault of ours")

    def readable() -> None:
        seen.append(os.read(reading, 10).decode())
        loop.remove(reading)
        loop.remove(reading)
        loop.later(0, loop.stop)

    loop.add(reading, readable)
    loop.later(0, fails)
    os.write(writing, b"second")
    loop.run()
    os.close(reading)
    os.close(writing)
    assert sorted(seen) == ["first", "second"]
    assert "ValueError: a fault of ours" in capfd.readouterr().err


# --- reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.EPERM, "mount /proc"),
            {"step": "root", "errno": 1, "path": "", "message": "mount /proc: operation not permitted"},
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/data"),
            {"step": "root", "errno": 2, "path": "/data", "message": "/data: no such file or directory"},
        ),
        (
            OSError(errno.EBUSY, "write memory.max=4096", "/sys/fs/cgroup/x"),
            {
                "step": "root",
                "errno": 16,
                "path": "/sys/fs/cgroup/x",
                "message": "write memory.max=4096: device or resource busy",
            },
        ),
        (
            StepError("user ghost: not there", 2, "/etc/passwd"),
            {"step": "root", "errno": 2, "path": "/etc/passwd", "message": "user ghost: not there"},
        ),
        (ValueError("odd"), {"step": "root", "errno": 0, "path": "", "message": "ValueError: odd"}),
    ],
)
def test_failures_are_described(error: BaseException, expected: dict[str, object]) -> None:
    described = describe("root", error)
    assert described == {"error": expected}
    json.dumps(described)


def test_whoever_steals_a_report_cannot_name_a_stranger() -> None:
    """A tracer may take the report's socket out of a child; the process that goes on must be the keeper's own."""
    loop = Loop()
    children = Children(loop)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    ended: list[int] = []
    child = children.add(pid, os.pidfd_open(pid), ended.append)
    done: list[Setup] = []
    setup = Setup(loop, ours, done.append, lambda moved: children.move(child, moved))
    for stranger in (1, os.getpid(), 0, -1, 1 << 40, "x"):
        theirs.send(json.dumps({"pid": stranger}).encode())
    for words in (b"[]", b"{", b"\xff", b"memfd"):
        theirs.send(words)
    theirs.close()
    select.select([child.pidfd], [], [])  # it has the other end too
    setup.collect()
    assert done == [setup]
    assert child.pid == pid
    children.reap()
    assert ended == [0]
    loop.close()
