"""What a keeper makes of what children say, which is trusted by nobody; and the slots that it gives them."""

import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine.agent import layout, shapes, standing, starts, ways
from crishim.engine.agent.batch import Batch, Blob, decode, records
from crishim.engine.agent.kernel import Kernel
from crishim.engine.agent.processes import WINDOW
from crishim.engine.agent.slots import KEPT, Slots, SlotsExhaustedError
from crishim.engine.agent.watching import MAX_FILE, Watched

PROCESS: dict[str, Any] = {
    "argv": ["tool"],
    "env": ["PATH=/bin:/usr/bin"],
    "cwd": "/",
    "user": {"user": "", "group": "", "groups": [], "image_groups": True},
    "capabilities": {"bounding": 0, "permitted": 0, "ambient": 0},
    "no_new_privs": True,
    "seccomp": "",
    "seccomp_flags": 0,
    "rlimits": [],
    "oom_score_adj": None,
    "umask": 0o22,
}
PLAN = {"process": PROCESS, "cgroup": {"version": 1, "directories": ["/c"]}}


class Child:
    """A start whose child the test plays."""

    def __init__(self, process: dict[str, Any] = PROCESS) -> None:
        plan = json.loads(json.dumps(PLAN | {"process": process}))
        first = starts.execution("x86_64", plan, inside=True, cgroup_namespace=True)
        self.watched = Watched(shapes.ready(first), plan["process"], "x86_64")
        self.first = first
        self.slot = os.memfd_create("slot", os.MFD_CLOEXEC)
        os.ftruncate(self.slot, self.watched.slot_size)
        os.pwrite(self.slot, self.watched.content(), 0)
        self.watched.bind(self.slot)

    def reads(self, content: bytes) -> None:
        """Do what the child's read of /etc/passwd does, from the offset that its record says."""
        look = self.first.look
        assert look is not None
        at = look.passwd_read.position * layout.RECORD
        offset = decode(os.pread(self.slot, layout.RECORD, at)).arguments[3]
        piece = content[offset : offset + WINDOW]
        os.pwrite(self.slot, piece, self.first.batch.offset_of(look.passwd))
        os.pwrite(self.slot, struct.pack("<q", len(piece)), at + layout.RESULT)

    def goes_on_at(self) -> int:
        """Return the address at which the child goes on after its stop."""
        return int.from_bytes(os.pread(self.slot, 8, self.first.batch.offset_of_other("users")), "little")


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    os.close(made.slot)


def test_a_short_file_takes_one_stop(child: Child) -> None:
    child.reads(b"root:x:0:0::/root:/bin/sh\n")
    assert child.watched.heard(b"8 bytes.")
    assert child.watched.identity is not None
    assert child.watched.identity.home == b"/root"
    second = decode(os.pread(child.slot, layout.RECORD, child.goes_on_at() - layout.SLOT))
    assert second.position == 0
    assert not child.watched.heard(b"8 bytes.")  # there is one stop, and no second


@pytest.mark.parametrize(
    ("passwd", "home"), [(b"root:x:0:0::/root:/bin/sh\n", b"HOME=/root\0"), (b"root:x:0:5::/r:/bin/sh\n", b"HOME=/r\0")]
)
def test_what_was_compiled_ahead_is_used_only_if_it_was_right(child: Child, passwd: bytes, home: bytes) -> None:
    child.watched.prepare()
    child.reads(passwd)
    assert child.watched.heard(b"8 bytes.")
    assert child.watched._second is not None
    assert (child.watched._second is child.watched._ahead) == (home == b"HOME=/root\0")
    assert home in os.pread(child.slot, 1 << 20, 0)


def test_a_long_file_is_read_on_up_to_a_bound(child: Child) -> None:
    content = b"#" * (MAX_FILE + 10 * WINDOW)
    look = child.first.look
    assert look is not None
    rounds = 0
    while True:
        child.reads(content)
        assert child.watched.heard(b"8 bytes.")
        rounds += 1
        if child.goes_on_at() != look.again:
            break
    assert rounds <= MAX_FILE // WINDOW + 1
    assert child.watched.identity is not None


def test_candidates_that_were_refused() -> None:
    made = Child()
    made.watched.heard(b"8 bytes.")
    inner = made.watched._second
    assert inner is not None
    assert inner.inner is not None
    executed = [n for n, call in enumerate(inner.inner.calls) if call.name == "execve"]
    content = inner.inner.finish().content

    def said(*errnos: int) -> bytes:
        out = b""
        for position, number in zip(executed, errnos, strict=True):
            record = bytearray(content[position * layout.RECORD : (position + 1) * layout.RECORD])
            struct.pack_into("<q", record, layout.RESULT, -number)
            out += bytes(record)
        return out

    made.watched.heard(said(13, 2))
    assert str(made.watched.failure) == "exec /bin/tool: permission denied"
    made.watched.failure = None
    made.watched.heard(said(2, 2))
    assert str(made.watched.failure) == "exec tool: executable file not found in $PATH"
    os.close(made.slot)


@given(st.lists(st.one_of(st.binary(max_size=300), st.just(b"8 bytes."), st.binary(min_size=208, max_size=208))))
def test_whatever_is_said_is_taken(messages: list[bytes]) -> None:
    made = Child()
    try:
        for message in messages:
            made.watched.heard(message)
            str(made.watched.failure)
            assert made.watched.pid_inside() >= 0
    finally:
        os.close(made.slot)


def test_the_room_for_arguments_is_reckoned_before() -> None:
    large = PROCESS | {
        "env": ["A=" + "x" * 100_000, "PATH=" + "/b:" * 30_000],
        "argv": ["t", "ü" * 50_000],
        "cwd": "/a" * 500,
    }
    made = Child(large)
    assert made.watched.heard(b"8 bytes.")
    assert made.watched.failure is None
    os.close(made.slot)


def test_blobs_are_what_they_say() -> None:
    assert Blob(b"abc", {}).fill([(b"b", b"x")]) == b"axc"


# --- where it is ------------------------------------------------------------------------------------


def said(child: Child, monkeypatch: pytest.MonkeyPatch, line: str) -> str:
    """Return what is told of a child whose /proc/<pid>/syscall has this line."""
    monkeypatch.setattr(standing, "standing", lambda _: standing.parse(line.encode()))
    monkeypatch.setattr(standing, "stopped", lambda _: "")
    return str(child.watched.hanging(os.getpid()))


def test_the_call_that_hangs_is_known_by_its_arguments(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, content = child.first.batch, child.watched.content()
    index = next(number for number, call in enumerate(batch.calls) if call.what == "/etc/group")
    record = decode(content, index * layout.RECORD)
    words = " ".join([f"{argument:#x}" for argument in record.arguments])
    line = f"{record.number} {words} 0x7ffd390e5c00 0x400298\n"
    assert said(child, monkeypatch, line) == "openat2 /etc/group: still opening"
    wrong = line.replace(f"{record.arguments[1]:#x}", "0x1")
    assert said(child, monkeypatch, wrong) == "before its first call: still going on"


@pytest.mark.parametrize("line", ["running\n", "-1 0x7ffd390e5c00 0x400298\n", "", "59 0x1", "a b c d e f g h i"])
def test_a_call_that_nobody_tells(child: Child, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert standing.parse(line.encode()) is None
    assert said(child, monkeypatch, line) == "before its first call: still going on"
    child.reads(b"root:x:0:0::/root:/bin/sh\n")
    assert said(child, monkeypatch, line) == "after pread64 /etc/passwd: still going on"


def test_of_equal_calls_it_is_the_next_one() -> None:
    batch = Batch("x86_64", layout.SLOT)
    for _ in range(3):
        batch.call("umask", 0)
        batch.call("getpid")
    found = records(batch.finish().content)
    where = standing.Standing(batch.numbers["umask"], (0,) * 6)
    assert standing.find(found, where) == 0
    found[1] = found[1]._replace(result=7)
    assert standing.find(found, where) == 2
    found[5] = found[5]._replace(result=7)  # and was sent back
    assert standing.find(found, where) == 4


def test_what_is_told_of_one_that_said_nothing(child: Child) -> None:
    text = str(child.watched.silent(127))
    assert text == "exec tool: ended with status 127 before it ran its program, and said nothing"
    assert str(child.watched.silent(159)) == "exec tool: killed by SIGSYS before it ran its program"
    assert "memory limit" in str(child.watched.silent(137, out_of_memory=True))
    assert "memory limit" not in str(child.watched.silent(159, out_of_memory=True))


# --- links that lead nowhere --------------------------------------------------------------------------


def test_links_are_followed_so_often_and_no_more() -> None:
    batch = Batch("x86_64", layout.SLOT)
    kernel = Kernel(batch)
    batch.reason("a mount", "mount /data/x")
    kernel.make("/data/x", directory=True, links=True)
    first = starts.First(batch, None, (), inside=False, dangling=kernel.dangling)
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    content = bytearray(batch.finish().content)
    dangling = kernel.dangling[1]
    struct.pack_into("<q", content, dangling.read.position * layout.RECORD + layout.RESULT, 8)
    where = batch.offset_of(dangling.link)
    content[where : where + 8] = b"/nowhere"
    os.pwrite(slot, content, 0)
    found = ways.Ways("x86_64", first, 0x10000, 0x40000)
    assert 0 not in found
    for _ in range(40):
        found.make(slot, 1)
    at = int.from_bytes(os.pread(slot, 8, batch.offset_of_other(dangling.stop)), "little") - layout.SLOT
    made = [decode(os.pread(slot, layout.RECORD, at + n * layout.RECORD)) for n in range(2)]
    assert [record.number for record in made] == [batch.numbers["openat2"], batch.numbers["mkdirat"]]
    with pytest.raises(ways.NoWayError, match="too many symbolic links"):
        found.make(slot, 1)
    os.close(slot)


# --- another keeper ---------------------------------------------------------------------------------


def after(old: Child, *, waits: bool) -> Watched:
    """Return what a second keeper makes of a start, whose child waits at its stop or has gone on."""
    stop = old.first.batch.stops["users"]
    os.pwrite(old.slot, struct.pack("<q", 8), (stop - 1) * layout.RECORD + layout.RESULT)
    os.pwrite(old.slot, struct.pack("<q", 0 if waits else 8), stop * layout.RECORD + layout.RESULT)
    watched = Watched(shapes.ready(old.first), PROCESS, "x86_64")
    watched.bind(old.slot)
    return watched


def test_a_keeper_that_died_before_it_answered(child: Child) -> None:
    child.reads(b"root:x:0:0::/root:/bin/sh\n")
    other = after(child, waits=True)
    assert other.waits()
    other.resume()
    assert child.first.look is not None
    assert child.goes_on_at() == child.first.look.again  # all is read once more
    child.reads(b"root:x:0:0::/root:/bin/sh\n")
    assert other.heard(b"8 bytes.")
    assert other.identity is not None


def test_a_keeper_that_died_after_it_wrote_the_second_batch(child: Child) -> None:
    child.reads(b"root:x:0:0::/root:/bin/sh\n")
    assert child.watched.heard(b"8 bytes.")
    before = os.pread(child.slot, 1 << 20, 0)
    other = after(child, waits=True)
    other.resume()
    assert not other.heard(b"8 bytes.")
    assert len(before) == len(os.pread(child.slot, 1 << 20, 0))
    second = child.watched._second
    assert second is not None
    at = second.batch.base - layout.SLOT
    assert os.pread(child.slot, 1 << 20, at) == before[at:]
    other.heard(before[at : at + layout.RECORD])
    assert "a call after the ids were known" in repr(other.failure)


def test_a_keeper_that_died_while_the_child_made_its_root(child: Child) -> None:
    other = Watched(shapes.ready(child.first), PROCESS, "x86_64")
    other.bind(child.slot)
    assert not other.waits()
    assert not after(child, waits=False).waits()
    child.reads(b"")
    assert other.heard(b"8 bytes.")


# --- slots ----------------------------------------------------------------------------------------


def test_slots_are_used_again_and_whole() -> None:
    slots = Slots(3)
    first = slots.take(100_000)
    assert os.fstat(first).st_blocks * 512 >= 100_000
    slots.give(first)
    assert slots.take(50_000) == first
    larger = slots.take(200_000)
    assert larger != first
    assert slots.out == 2
    slots.take(1)
    with pytest.raises(SlotsExhaustedError, match="3 starts have not come to an end"):
        slots.take(1)
    slots.close()
    assert slots.out == 0


def test_only_some_free_slots_are_kept() -> None:
    slots = Slots(10)
    out = [slots.take(4096 * (number + 1)) for number in range(KEPT + 2)]
    for fd in out:
        slots.give(fd)
    gone = [fd for fd in out if not os.path.exists(f"/proc/self/fd/{fd}")]
    assert gone == out[:2]
    slots.close()
