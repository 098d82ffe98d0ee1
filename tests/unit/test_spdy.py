"""SPDY/3.1 without sockets: frames, headers, streams, windows; fed whole and byte by byte."""

import struct
import zlib
from collections.abc import Callable

import pytest

from crishim.streaming.spdy import frames
from crishim.streaming.spdy.connection import (
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    Connection,
    Data,
    Event,
    Gone,
    Opened,
    Reset,
)
from crishim.streaming.spdy.frames import Goodbye, Setting, Status, Type
from crishim.streaming.spdy.headers import DICTIONARY, MAX_BLOCK, Packer, SpdyError, Unpacker
from tests.support.spdy import Client

Feed = Callable[[Connection, bytes], list[Event]]


def whole(connection: Connection, data: bytes) -> list[Event]:
    return list(connection.feed(data))


def bytewise(connection: Connection, data: bytes) -> list[Event]:
    return [event for byte in data for event in connection.feed(bytes([byte]))]


def text(events: list[Event], stream: int) -> bytes:
    return b"".join(bytes(e.data) for e in events if isinstance(e, Data) and e.stream == stream)


@pytest.fixture(params=[whole, bytewise])
def feed(request: pytest.FixtureRequest) -> Feed:
    found: Feed = request.param
    return found


# --- headers ---------------------------------------------------------------------------------------------------------


def test_the_dictionary_is_the_protocols() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2  # which a zlib stream that was made with it has in its head


def test_blocks_of_one_direction_come_back_in_order() -> None:
    packer, unpacker = Packer(), Unpacker()
    blocks = [{"streamtype": "error"}, {}, {"streamtype": "stdin", "port": "80", "x": "ü" * 300}]
    assert [unpacker.unpack(packer.pack(block)) for block in blocks] == blocks


def test_names_are_read_in_lower_case() -> None:
    assert Unpacker().unpack(Packer().pack({"streamType": "data"})) == {"streamtype": "data"}


def test_a_block_that_unpacks_to_more_than_is_taken_is_refused() -> None:
    with pytest.raises(SpdyError, match="longer than"):
        Unpacker().unpack(Packer().pack({"a": "0" * (MAX_BLOCK + 1)}))


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        (b"\0\0", "cut off"),
        (b"\0\0\0\1\0\0\0\1a", "cut off"),
        (b"\0\0\0\1\0\0\0\1a\xff\xff\xff\xff", "cut off"),
        (b"\xff\xff\xff\xff", "cut off"),
        (b"\0\0\0\0more", "more than its headers"),
    ],
)
def test_a_block_that_does_not_hold_what_it_says_is_refused(plain: bytes, sentence: str) -> None:
    packing = zlib.compressobj(zdict=DICTIONARY)
    with pytest.raises(SpdyError, match=sentence):
        Unpacker().unpack(packing.compress(plain) + packing.flush(zlib.Z_SYNC_FLUSH))


def test_a_block_without_the_dictionary_is_refused() -> None:
    with pytest.raises(SpdyError, match="cannot be unpacked"):
        Unpacker().unpack(b"no zlib")


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_are_opened_answered_and_half_closed_both_ways(feed: Feed) -> None:
    server, client = Connection(8), Client()
    first, opening = client.open(streamtype="stdin")
    second, more = client.open(streamtype="stdout", last=True)
    sent = opening + more + client.send(first, b"hello ") + client.send(first, b"world", last=True)
    events = feed(server, sent)
    assert [e for e in events if isinstance(e, Opened)] == [
        Opened(first, {"streamtype": "stdin"}, last=False),
        Opened(second, {"streamtype": "stdout"}, last=True),
    ]
    assert text(events, first) == b"hello world"
    ends = [e.last for e in events if isinstance(e, Data)]
    assert ends[-1]
    assert not any(ends[:-1])
    server.accept(first)
    server.accept(second)
    client.feed(server.take())
    assert client.replied == {first, second}
    client.feed(server.data_head(second, 3) + b"out" + server.data_head(second, 0, last=True))
    assert bytes(client.received[second]) == b"out"
    assert client.ended == {second: "closed"}
    assert server.sendable(first)
    assert not server.sendable(second)


def test_a_frame_of_the_largest_size_comes_in_pieces(feed: Feed) -> None:
    server, client = Connection(1), Client()
    stream, opening = client.open()
    feed(server, opening)
    size = frames.MAX_DATA if feed is whole else 3000
    frame = frames.data_head(stream, size, last=True) + bytes(size)
    events = [e for at in range(0, len(frame), 1 << 16) for e in feed(server, frame[at : at + (1 << 16)])]
    found = [e for e in events if isinstance(e, Data)]
    assert sum(len(e.data) for e in found) == size
    assert [e.last for e in found] == [False] * (len(found) - 1) + [True]


def test_data_of_streams_that_are_not_open_are_passed_over(feed: Feed) -> None:
    server, client = Connection(8), Client()
    stream, opening = client.open()
    feed(server, opening)
    server.reset(stream)
    client.feed(server.take())
    assert client.ended == {stream: f"reset {Status.CANCEL}"}
    assert feed(server, client.send(stream, b"late") + client.send(99, b"odd")) == []
    assert not server.sendable(stream)


def test_the_peers_reset_is_told_once(feed: Feed) -> None:
    server, client = Connection(8), Client()
    stream, opening = client.open()
    feed(server, opening)
    reset = frames.numbers(Type.RST_STREAM, stream, Status.CANCEL)
    assert feed(server, reset + reset) == [Reset(stream)]


def test_streams_beyond_the_limit_are_refused_and_their_headers_read(feed: Feed) -> None:
    server, client = Connection(2), Client()
    opened = [client.open(streamtype="data", port=str(port)) for port in range(4)]
    events = feed(server, b"".join(data for _, data in opened))
    assert [e.stream for e in events if isinstance(e, Opened)] == [1, 3]
    client.feed(server.take())
    assert client.ended == {5: f"reset {Status.REFUSED_STREAM}", 7: f"reset {Status.REFUSED_STREAM}"}
    server.reset(1)
    number, data = client.open(streamtype="error")
    assert feed(server, data) == [Opened(number, {"streamtype": "error"}, last=False)]


def test_ended_streams_make_room_for_others(feed: Feed) -> None:
    server, client = Connection(1), Client()
    for _ in range(50):
        stream, opening = client.open(last=True)
        assert feed(server, opening) == [Opened(stream, {}, last=True)]
        server.data_head(stream, 0, last=True)


def test_more_headers_may_end_a_stream(feed: Feed) -> None:
    server, client = Connection(1), Client()
    stream, opening = client.open()
    more = frames.control(Type.HEADERS, struct.pack(">I", stream) + client.packer.pack({"a": "b"}), frames.FIN)
    events = feed(server, opening + more)
    assert isinstance(events[-1], Data)
    assert events[-1].last


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(1 << 16),
        frames.control(Type.PING, bytes(4)).replace(b"\x80\x03", b"\x80\x02"),
        struct.pack(">II", 0x80030001, frames.MAX_CONTROL + 1),
        bytes(8),
        frames.control(Type.SYN_STREAM, bytes(4)),
        frames.control(Type.SYN_STREAM, struct.pack(">IIH", 2, 0, 0) + Packer().pack({})),
        frames.control(Type.SETTINGS, struct.pack(">I", 1 << 31)),
    ],
)
def test_what_is_no_spdy_is_an_error(feed: Feed, data: bytes) -> None:
    server, client = Connection(8), Client()
    if data.startswith(b"GET"):  # its first bytes are the head of a data frame for a stream that is not open
        assert feed(server, data) == []
        return
    _, opening = client.open()
    with pytest.raises(SpdyError):
        feed(server, opening + data)


def test_an_id_is_used_once(feed: Feed) -> None:
    server = Connection(8)
    packer = Packer()
    frame = [frames.control(Type.SYN_STREAM, struct.pack(">IIH", 5, 0, 0) + packer.pack({})) for _ in range(2)]
    with pytest.raises(SpdyError, match="stream 5 is opened after 5"):
        feed(server, b"".join(frame))


# --- the connection --------------------------------------------------------------------------------------------------


def test_pings_are_answered_goaway_is_told_and_the_unknown_is_passed_over(feed: Feed) -> None:
    server, client = Connection(8), Client()
    unknown = struct.pack(">II", 0x8003000B, 3) + b"abc"
    sent = frames.numbers(Type.PING, 7) + unknown + frames.numbers(Type.PING, 2) + frames.numbers(Type.GOAWAY, 0, 0)
    assert feed(server, sent) == [Gone()]
    client.feed(server.take())
    assert [p.numbers(1) for p in client.of(Type.PING)] == [(7,)]


def test_answers_that_nobody_reads_end_the_connection(feed: Feed) -> None:
    server = Connection(8)
    with pytest.raises(SpdyError, match="more answers"):
        feed(server, frames.numbers(Type.PING, 1) * 10_000)


def test_goodbye_names_the_newest_stream() -> None:
    server, client = Connection(8), Client()
    list(server.feed(client.open()[1] + client.open()[1]))
    server.goodbye(Goodbye.OK)
    client.feed(server.take())
    assert client.of(Type.GOAWAY)[0].numbers(2) == (3, Goodbye.OK)


def test_a_peer_without_windows_is_held_to_none() -> None:
    server, client = Connection(8), Client()
    stream, opening = client.open()
    list(server.feed(opening))
    for _ in range(100):
        assert server.room(stream) == frames.MAX_DATA
        server.data_head(stream, 1 << 20)


def test_a_peers_windows_are_kept(feed: Feed) -> None:
    server, client = Connection(8), Client()
    stream, opening = client.open()
    feed(server, frames.settings([(Setting.INITIAL_WINDOW_SIZE, 1000)]) + opening)
    assert server.room(stream) == 1000
    server.data_head(stream, 900)
    assert server.room(stream) == 100
    feed(server, frames.settings([(Setting.INITIAL_WINDOW_SIZE, 500)]))
    assert server.room(stream) == 0
    feed(server, frames.numbers(Type.WINDOW_UPDATE, stream, LARGEST_WINDOW))
    assert server.room(stream) == INITIAL_WINDOW - 900  # the connection's
    feed(server, frames.numbers(Type.WINDOW_UPDATE, 0, 5000) + frames.numbers(Type.WINDOW_UPDATE, 77, 5000))
    assert server.room(stream) == INITIAL_WINDOW + 4100


def test_a_peer_with_windows_gets_the_largest_and_they_are_filled_up_again() -> None:
    server, client = Connection(8), Client()
    stream, opening = client.open()
    list(server.feed(opening))
    client.feed(server.take())
    assert frames.read_settings(client.of(Type.SETTINGS)[0])[Setting.INITIAL_WINDOW_SIZE] == LARGEST_WINDOW
    piece = client.send(stream, bytes(1 << 20))
    for _ in range(1 << 9):
        for _event in server.feed(piece):
            pass
    client.feed(server.take())
    found = {control.numbers(2)[0]: control.numbers(2)[1] for control in client.of(Type.WINDOW_UPDATE)[1:]}
    assert found == {0: 1 << 29, stream: 1 << 29}
