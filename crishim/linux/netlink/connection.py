"""A blocking netlink socket: requests with acknowledgements, batches, dumps.

The kernel works a request off inside send(), so a call returns as soon as the kernel's own work is done; a receive
timeout stands only against a lost reply. Not thread-safe: one thread uses a connection at a time.
Out of scope: multicast (`monitor`). Invariant: a failed request raises `KernelError` whose text starts with the
request's `what` and holds the kernel's extended acknowledgement, if there is one; replies that belong to an earlier
call are dropped, never taken for the answer.
"""

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Self

from crishim.errors import DeadlineExceededError, KernelError
from crishim.linux.netlink import wire

ROUTE = 0
NETFILTER = 12

_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11
_REPLY_SECONDS = 30  # a host with thousands of links holds the rtnl lock for seconds
_RECEIVE = 1 << 16
_SEND_BUFFER = 1 << 20
_DUMP_TRIES = 8


class Connection:
    """One netlink socket; owns its descriptor."""

    def __init__(self, protocol: int = ROUTE, *, fd: int | None = None) -> None:
        """Open a socket in the caller's network namespace, or act through a duplicate of `fd` in its own.

        Raises:
            KernelError: the kernel has no such protocol.
        """
        try:
            self._socket = _open(protocol) if fd is None else _duplicate(fd, protocol)
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _REPLY_SECONDS, 0))
        except OSError as error:
            raise KernelError(f"open netlink socket of protocol {protocol}", error.errno or errno.EIO) from None
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def send(self, requests: Sequence[wire.Request]) -> int:
        """Send one batch and return the sequence number of its first message."""
        first = self._sequence + 1
        self._sequence += len(requests)
        data = wire.join(requests, first)
        if len(data) > _SEND_BUFFER // 8:
            self._grow(len(data))
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise KernelError(f"send {requests[0].what}", error.errno or errno.EIO) from None
        return first

    def receive(self, what: str) -> list[wire.Message]:
        """Return the messages of one datagram; `what` names the request in errors."""
        try:
            return list(wire.messages(self._socket.recv(_RECEIVE)))
        except BlockingIOError:
            raise DeadlineExceededError(f"{what}: no reply from the kernel within {_REPLY_SECONDS} s") from None
        except OSError as error:
            raise KernelError(f"receive the reply to {what}", error.errno or errno.EIO) from None

    def request(self, requests: Sequence[wire.Request]) -> list[wire.Message]:
        """Send `requests` in one batch and wait for all acknowledgements; return what came besides.

        The kernel works off all of them even if one fails.

        Raises:
            KernelError: the first request that failed.
        """
        if not requests:
            return []
        flagged = [request._replace(flags=request.flags | wire.F_ACK) for request in requests]
        first = self.send(flagged)
        waiting = len(requests)
        failure: KernelError | None = None
        answers: list[wire.Message] = []
        while waiting:
            for message in self.receive(requests[0].what):
                index = message.sequence - first
                if not 0 <= index < len(requests):
                    continue
                if message.kind != wire.ERROR:
                    answers.append(message)
                    continue
                waiting -= 1
                failure = failure or failure_of(message, requests[index].what)
        if failure is not None:
            raise failure
        return answers

    def dump(self, request: wire.Request) -> list[wire.Message]:
        """Send a dump request and return all its messages; a dump that a change interrupted is made again.

        Raises:
            KernelError: the dump failed, or was interrupted again and again.
        """
        for _ in range(_DUMP_TRIES):
            answers, interrupted = self._dump_once(request)
            if not interrupted:
                return answers
        raise KernelError(f"{request.what} (interrupted by changes {_DUMP_TRIES} times)", errno.EINTR)

    def _dump_once(self, request: wire.Request) -> tuple[list[wire.Message], bool]:
        sequence = self.send([request._replace(flags=request.flags | wire.F_DUMP)])
        answers: list[wire.Message] = []
        interrupted = False
        while True:
            for message in self.receive(request.what):
                if message.sequence != sequence:
                    continue
                interrupted = interrupted or bool(message.flags & wire.F_DUMP_INTERRUPTED)
                if message.kind in {wire.ERROR, wire.DONE}:
                    failure = failure_of(message, request.what) if message.payload else None
                    if failure is not None:
                        raise failure
                    return answers, interrupted
                answers.append(message)

    def _grow(self, size: int) -> None:
        force = 32  # SO_SNDBUFFORCE: needs CAP_NET_ADMIN, which whoever changes networks has
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, max(_SEND_BUFFER, size * 2))
        except OSError as error:
            raise KernelError(f"set the netlink send buffer to {size} bytes", error.errno or errno.EIO) from None


def _open(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def _duplicate(fd: int, protocol: int) -> socket.socket:
    mine = os.dup(fd)
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=mine)
    except OSError:
        os.close(mine)
        raise


def failure_of(message: wire.Message, what: str) -> KernelError | None:
    """Return the error that an ERROR or DONE message reports, None if it is an acknowledgement."""
    number, words = wire.fault(message)
    if not number:
        return None
    return KernelError(f"{what} ({words.rstrip('.')})" if words else what, number)
