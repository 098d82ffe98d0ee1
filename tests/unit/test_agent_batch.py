"""Batches as data: what is built reads back as it was asked for; ids and numbers go into ready ones."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine.agent import layout
from crishim.engine.agent.batch import Batch, Distance, Half, Label, Param, Place, Word, decode, records
from crishim.engine.agent.lowering import MAX_CANDIDATES, candidates

BASE = 0x1000


def batch() -> Batch:
    return Batch("x86_64", BASE)


def word(content: bytes, address: int) -> int:
    found: int = struct.unpack_from("<Q", content, address - BASE)[0]
    return found


def test_a_record_is_as_long_as_its_fields() -> None:
    assert layout.RECORD == layout.VALUE + 8
    starts = (layout.CONTROL, layout.ARGUMENTS, layout.RESULT, layout.ERRNOS, layout.OTHER, layout.ADDRESS)
    formats = ("<i", "<iI", "<iI6Q", "<iI6Qq", "<iI6Qq4H", "<iI6Qq4HQ")
    assert [struct.calcsize(text) for text in formats] == list(starts)
    assert layout.FIRST % 8 == 0
    assert layout.SENT >= layout.RECEIVED + layout.CONTROL_SIZE
    assert layout.FIRST >= layout.SENT + layout.CONTROL_SIZE


def test_arguments_of_every_kind() -> None:
    made = batch()
    text = made.text("abc")
    assert made.text("abc") == text
    room = made.room(16)
    first = made.call("openat", -100, text, 0)
    made.call("read", first, Word(room), Half(room.at(8)), Distance(room, BASE), Word(0x77), 5)
    content = made.finish().content
    one, two = records(content)
    assert (one.number, one.arguments[0], one.arguments[2:]) == (made.numbers["openat"], 2**64 - 100, (0, 0, 0, 0))
    assert content[one.arguments[1] - BASE :][:4] == b"abc\0"
    assert two.arguments[0] == BASE + layout.RESULT
    place = BASE + made.offset_of(room)
    assert two.arguments[1:] == (place, place + 8, place - BASE, 0x77, 5)
    kinds = [two.control >> 2 * number & 3 for number in range(6)]
    assert kinds == [layout.WORD, layout.WORD, layout.HALF, 0, layout.WORD, 0]
    assert [one.position, two.position] == [0, 1]
    assert decode(content, 2 * layout.RECORD).number == layout.END


def test_arrays_hold_addresses_numbers_and_results() -> None:
    made = batch()
    opened = made.call("getpid")
    label = made.label()
    array = made.words(made.text("x"), 0, -1, opened, label, Param("later"))
    made.call("getpid")
    blob = made.finish()
    at = BASE + made.offset_of(array)
    values = [word(blob.content, at + 8 * number) for number in range(6)]
    assert blob.content[values[0] - BASE :][:2] == b"x\0"
    assert values[1:] == [0, 2**64 - 1, BASE + layout.RESULT, BASE + layout.RECORD, 0]
    assert word(blob.fill(later=9), at + 40) == 9


def test_conditions_and_where_they_lead() -> None:
    made = batch()
    end = Label()
    made.call("mkdirat", 0, 0, 0, allow=(errno.EEXIST, errno.EACCES), other=end)
    made.call("getpid", expect=(made.room(8), 0xFF, 7))
    made.otherwise(end)
    made.call("getppid")
    made.then(end)
    made.call("clone", 0)
    made.child(0x5000)
    made.call("getuid")
    made.place(end)
    found = records(made.finish().content)
    after = BASE + 5 * layout.RECORD
    assert [record.other for record in found] == [after, after, after, 0x5000, after]
    assert found[0].errnos == (errno.EEXIST, errno.EACCES, 0, 0)
    assert found[1].expect[1:] == (0xFF, 7)
    flags = [record.control & 0xF000 for record in found]
    assert flags == [0, layout.EXPECT | layout.ELSE, layout.OK, layout.CHILD, 0]


def test_calls_go_forward_only() -> None:
    made = batch()
    back = made.label()
    made.call("getpid", allow=(errno.EPERM,), other=back)
    with pytest.raises(ValueError, match=r"call 0 \(getpid\) goes on at 0: calls go forward only"):
        made.finish()
    unplaced = batch()
    unplaced.call("getpid", allow=(errno.EPERM,), other=Label())
    with pytest.raises(ValueError, match="forward only"):
        unplaced.finish()


def test_a_stop_tells_and_waits_for_eight_bytes() -> None:
    made = batch()
    made.call("getpid")
    made.stop("here", 3)
    made.call("getppid")
    content = made.finish().content
    _, told, waits, after = records(content)
    assert (told.arguments[0], waits.arguments[0], after.number) == (3, 3, made.numbers["getppid"])
    assert waits.expect == (BASE + 2 * layout.RECORD + layout.RESULT, 2**64 - 1, 8)
    assert waits.other == word(content, BASE + made.offset_of_other("here")) == BASE + 3 * layout.RECORD


def test_ids_go_into_a_ready_blob() -> None:
    made = batch()
    old, new = b"c" * 64, b"0123456789abcdef" * 4
    path = made.text(b"/run/" + old + b"/upper")
    made.call("close", Param("fd"))
    made.call("dup3", Param("fd"), Param("to"), 0)
    blob = made.finish()
    content = blob.fill([(old, new)], fd=5, to=-1)
    assert content[made.offset_of(path) :][: len(new) + 11] == b"/run/" + new + b"/upper"
    one, two = records(content)
    assert (one.arguments[0], two.arguments[:2]) == (5, (5, 2**64 - 1))
    assert len(content) == len(blob.content)
    with pytest.raises(ValueError, match="another length"):
        blob.fill([(old, b"short")], fd=1, to=1)
    for numbers in ({"fd": 1}, {"fd": 1, "to": 1, "more": 1}):
        with pytest.raises(KeyError):
            blob.fill(**numbers)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "openat2", "mount", "prctl"]),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
            st.lists(st.integers(1, 133), max_size=4),
        ),
        max_size=30,
    )
)
def test_what_is_built_reads_back(asked: list[tuple[str, list[int], list[int]]]) -> None:
    made = batch()
    for name, arguments, errnos in asked:
        made.call(name, *arguments, allow=errnos)
    found = records(made.finish().content)
    assert [
        (record.number, list(record.arguments), [number for number in record.errnos if number]) for record in found
    ] == [
        (made.numbers[name], [*(value % 2**64 for value in arguments), *[0] * (6 - len(arguments))], errnos)
        for name, arguments, errnos in asked
    ]


def test_the_same_calls_give_the_same_bytes() -> None:
    one, two = batch(), batch()
    for made in (one, two):
        made.call("write", 1, made.data(b"x" * 5), 5)
        made.call("mount", made.text("a"), Place(0), 0)
    assert one.finish() == two.finish()


# --- PATH -----------------------------------------------------------------------------------------


def test_candidates_are_those_of_the_path_in_order() -> None:
    assert candidates(b"x", b"/bin:/usr/bin::/bin") == [b"/bin/x", b"/usr/bin/x", b"./x"]
    assert candidates(b"./x", b"/bin") == [b"./x"]
    assert candidates(b"x", b"") == [b"./x"]
    assert candidates(b"x", b"/" + b"a" * 5000 + b":/b") == [b"/b/x"]


def test_a_path_without_end_is_cut_off() -> None:
    assert candidates(b"x", b":" * 3_000_000) == [b"./x"]
    many = b":".join(b"/%d" % number for number in range(100_000))
    assert len(candidates(b"x", many)) == MAX_CANDIDATES
