"""Messages between daemon, spawner and keeper: one JSON object a packet over SOCK_SEQPACKET, fds by SCM_RIGHTS.

The kernel refuses packets over about 212 kB (EMSGSIZE), so a larger object travels in a sealed memfd: the packet is
then just its mark, and the memfd is the last of its fds. Received fds are close-on-exec from the first moment
(MSG_CMSG_CLOEXEC). A socket's path may be longer than the 107 bytes of sun_path: it is bound and reached through
/proc/self/fd/<directory>. This module is loaded in the tiny processes, so it imports as little as it can.
"""

import _socket
import json
import mmap
import os
from collections.abc import Sequence
from typing import Any

from crishim.linux.memfd import seal

PROTOCOL_VERSION = 1
# The last two versions are understood by a daemon (a keeper outlives the daemon that started it).
OLDEST_VERSION = 1

Message = dict[str, Any]

_LIMIT = 128 * 1024
_MEMFD_MARK = b"@"
_MAX_FDS = 16
_ANCILLARY = _socket.CMSG_SPACE(_MAX_FDS * 4)
# Packets are received into one place: a buffer for the largest one, made each time, costs a fault for every page of it.
_buffer = mmap.mmap(-1, _LIMIT + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class ClosedError(Exception):
    """The other end is gone."""


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return a connected pair, both ends close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def listen(directory: str, name: str) -> _socket.socket:
    """Bind and listen on `directory/name` (mode 0600), however long the path is."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    old = os.umask(0o177)
    try:
        sock.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.umask(old)
        os.close(fd)
    sock.listen(16)
    return sock


def connect(directory: str, name: str) -> _socket.socket:
    """Connect to `directory/name`; raises OSError (ENOENT, ECONNREFUSED) if no one listens."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(fd)
    return sock


# What `json.dumps` and `json.loads` would make anew each time; `raw_decode` also leaves regular expressions out.
_to_text = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_from_text = json.JSONDecoder().raw_decode


def encode(message: Message, plan: bytes = b"") -> tuple[bytes, int]:
    """Return the packet of a message and the memfd that must travel with it, or -1.

    Args:
        message: the object.
        plan: JSON of its member `plan`, where that is encoded already.
    """
    data = _to_text(message).encode()
    if plan:
        data = b'%b,"plan":%b}' % (data[:-1], plan)
    if len(data) <= _LIMIT:
        return data, -1
    fd = os.memfd_create("crishim-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    seal(fd, "a large message")
    return _MEMFD_MARK, fd


def send_packet(sock: _socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send one encoded packet; BlockingIOError if the queue is full, ClosedError if the other end is gone."""
    rights = b"".join([fd.to_bytes(4, "little") for fd in fds])
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
    try:
        sock.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        raise ClosedError from None


def send(sock: _socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send a message and copies of `fds`."""
    data, memfd = encode(message)
    if memfd < 0:
        send_packet(sock, data, fds)
        return
    try:
        send_packet(sock, data, [*fds, memfd])
    finally:
        os.close(memfd)


def receive(sock: _socket.socket) -> tuple[Message, list[int]]:
    """Return the next message and its fds; BlockingIOError if there is none yet, ClosedError at the end."""
    data, fds = receive_packet(sock)
    return decode(data, fds), fds


def receive_packet(sock: _socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet as it came, for `decode` or to be sent on, and its fds."""
    try:
        size, ancillary, flags, _ = sock.recvmsg_into((_buffer,), _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        raise ClosedError from None
    fds: list[int] = []
    for level, kind, rights in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.extend(int.from_bytes(rights[n : n + 4], "little") for n in range(0, len(rights) - 3, 4))
    if not size:
        raise ClosedError
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        close_all(fds)
        raise ClosedError
    return _buffer[:size], fds


def decode(data: bytes, fds: list[int]) -> Message:
    """Return the message of a packet; the memfd of a large one is taken out of `fds`."""
    if data == _MEMFD_MARK:
        memfd = fds.pop()
        os.lseek(memfd, 0, os.SEEK_SET)
        with open(memfd, "rb") as file:
            data = file.read()
    message: Message = _from_text(data.decode())[0]
    return message


def close_all(fds: Sequence[int]) -> None:
    """Close each fd."""
    for fd in fds:
        os.close(fd)
