"""Fuzzing what clients of streams send: events or the declared error, the same however the bytes are cut, no growth."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from crishim.streaming.spdy import frames
from crishim.streaming.spdy.connection import MAX_PENDING, Connection, Data, Event, Opened
from crishim.streaming.spdy.frames import Type
from crishim.streaming.spdy.headers import Packer, SpdyError
from tests.support.fuzzing import fuzzed

LIMIT = 4

_NUMBER = st.sampled_from([0, 1, 2, 3, 5, 7, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
_HEADERS = st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)
_PART = st.one_of(
    st.tuples(
        st.just("open"), st.integers(0, 15), st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)
    ),
    st.tuples(st.just("data"), st.integers(0, 15), st.binary(max_size=40), st.booleans()),
    st.tuples(st.just("numbers"), st.sampled_from(list(Type)), st.lists(_NUMBER, max_size=5)),
    st.tuples(st.just("control"), st.integers(0, 0xFFFF), st.integers(0, 255), st.binary(max_size=40)),
    st.tuples(st.just("bytes"), st.binary(max_size=30)),
)


def _bytes(parts: list[tuple[object, ...]]) -> bytes:
    packer = Packer()
    found = b""
    for part in parts:
        match part:
            case ("open", int(number), dict(headers)):
                body = struct.pack(">IIH", number, 0, 0) + packer.pack(headers)
                found += frames.control(Type.SYN_STREAM, body)
            case ("data", int(number), bytes(data), bool(last)):
                found += frames.data_head(number, len(data), last=last) + data
            case ("numbers", Type() as kind, list(values)):
                found += frames.numbers(kind, *values)
            case ("control", int(kind), int(flags), bytes(body)):
                found += struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body
            case ("bytes", bytes(data)):
                found += data
    return found


def _run(data: bytes, cut: int) -> tuple[list[object], bytes, bool]:
    """Return the events with adjacent data joined, what is sent, and whether it failed."""
    connection = Connection(LIMIT)
    found: list[object] = []
    failed = False

    def note(event: Event) -> None:
        if isinstance(event, Data):
            last = found[-1] if found else None
            if isinstance(last, list) and last[0] == event.stream and not last[2]:
                last[1] += bytes(event.data)
                last[2] = event.last
            else:
                found.append([event.stream, bytes(event.data), event.last])
        else:
            found.append(event)

    try:
        for at in range(0, len(data), cut):
            for event in connection.feed(data[at : at + cut]):
                note(event)
                if isinstance(event, Opened):
                    connection.accept(event.stream)
                    assert not connection.room(event.stream) or connection.sendable(event.stream)
    except SpdyError:
        failed = True
    assert len(connection._streams) <= LIMIT
    assert len(connection._reader._kept) <= frames.HEAD + frames.MAX_CONTROL
    out = connection.take()
    assert len(out) <= MAX_PENDING + 200
    return found, out, failed


@fuzzed(60)
@given(st.lists(_PART, max_size=12), st.integers(1, 9))
def test_spdy_gives_the_same_however_its_bytes_are_cut(parts: list[tuple[object, ...]], cut: int) -> None:
    data = _bytes(parts)
    assert _run(data, cut) == _run(data, len(data) or 1)


@fuzzed(60)
@given(st.binary(max_size=300))
def test_spdy_of_any_bytes_ends_in_events_or_its_error(data: bytes) -> None:
    _run(data, 7)
