"""Messages between daemon, spawner and keeper: sizes, descriptors, ends, long paths."""

import contextlib
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine import wire


@contextlib.contextmanager
def connected() -> Iterator[tuple[Any, Any]]:
    ours, theirs = wire.pair()
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


def fill(sock: Any) -> None:
    for _ in range(100_000):
        wire.send(sock, {"text": "x" * 10_000})


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text()), max_size=5))
def test_small_messages(message: wire.Message) -> None:
    with connected() as (ours, theirs):
        wire.send(ours, message)
        assert wire.receive(theirs) == (message, [])


@pytest.mark.parametrize("size", [1, 128 * 1024 - 20, 128 * 1024, 212 * 1024, 5 << 20])
def test_messages_of_any_size(size: int) -> None:
    before = descriptors()
    with connected() as (ours, theirs):
        message = {"text": "x" * size, "n": 1}
        wire.send(ours, message)
        assert wire.receive(theirs) == (message, [])
    assert descriptors() == before


def test_large_messages_are_sealed() -> None:
    data, memfd = wire.encode({"text": "x" * (1 << 20)})
    try:
        assert data == b"@"
        with pytest.raises(PermissionError):
            os.write(memfd, b"y")
        with pytest.raises(PermissionError):
            os.truncate(memfd, 0)
    finally:
        os.close(memfd)


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_descriptors_travel_closed_on_exec(size: int) -> None:
    before = descriptors()
    reading, writing = os.pipe()
    with connected() as (ours, theirs):
        wire.send(ours, {"text": "x" * size}, (reading, writing))
        message, fds = wire.receive(theirs)
        assert len(message["text"]) == size
        assert len(fds) == 2
        assert [fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds] == [fcntl.FD_CLOEXEC] * 2
        os.write(fds[1], b"through")
        assert os.read(reading, 10) == b"through"
        wire.close_all([*fds, reading, writing])
    assert descriptors() == before


def test_ends() -> None:
    with connected() as (ours, theirs):
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.receive(theirs)
        theirs.close()
        with pytest.raises(wire.ClosedError):
            wire.send(ours, {})
        with pytest.raises(wire.ClosedError):
            wire.receive(ours)


def test_full_queue_is_told() -> None:
    with connected() as (ours, _theirs):
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            fill(ours)


def test_more_descriptors_than_a_message_has_are_refused_whole() -> None:
    before = descriptors()
    with connected() as (ours, theirs):
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        ours.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        wire.close_all(fds)
        with pytest.raises(wire.ClosedError):
            wire.receive(theirs)
    assert descriptors() == before


def test_what_is_no_json_is_an_error() -> None:
    with connected() as (ours, theirs):
        ours.send(b"{no")
        with pytest.raises(json.JSONDecodeError):
            wire.receive(theirs)


def test_sockets_at_long_paths(tmp_path: Path) -> None:
    before = descriptors()
    directory = tmp_path.joinpath(*["a-rather-long-name-of-a-directory"] * 6)
    directory.mkdir(parents=True)
    assert len(str(directory)) > 107
    server = wire.listen(str(directory), "keeper.sock")
    path = directory / "keeper.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = wire.connect(str(directory), "keeper.sock")
    fd, _ = server._accept()  # type: ignore[attr-defined]
    accepted = socket.socket(fileno=fd)
    wire.send(client, {"a": 1})
    assert wire.receive(accepted) == ({"a": 1}, [])
    for sock in (accepted, client, server):
        sock.close()
    with pytest.raises(ConnectionRefusedError):
        wire.connect(str(directory), "keeper.sock")
    with pytest.raises(FileNotFoundError):
        wire.connect(str(directory), "other.sock")
    with pytest.raises(FileNotFoundError):
        wire.connect(str(directory / "none"), "keeper.sock")
    assert descriptors() == before
