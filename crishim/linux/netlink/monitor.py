"""News from the kernel that a link is gone, for an event loop.

A link's name, and with it a pod's address, is free again only when RTM_DELLINK was sent: namespaces are torn down
by a kernel worker after their last user left. The socket carries a classic BPF filter (socket(7), SO_ATTACH_FILTER)
that lets only these messages through, so that the news of every other link on the host never wakes us.
Invariant: `read` never blocks; after lost messages (ENOBUFS) it says so, and the caller looks for itself.
"""

import ctypes
import errno
import socket
import struct

from crishim.errors import KernelError
from crishim.linux.netlink import link, wire
from crishim.linux.netlink.connection import ROUTE

_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_ATTACH_FILTER = 26
_LINK_GROUP = 1  # RTNLGRP_LINK
_RECEIVE_BUFFER = 1 << 20
_BATCH = 1 << 16

# Classic BPF instructions (linux/bpf_common.h)
_LOAD_HALF = 0x28
_LOAD_BYTE = 0x30
_JUMP_EQUAL = 0x15
_RETURN = 0x06


class LinkMonitor:
    """Names of links that the kernel deleted in the caller's network namespace."""

    def __init__(self) -> None:
        """Subscribe.

        Raises:
            KernelError: the kernel refuses.
        """
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, ROUTE
            )
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            _attach_filter(self._socket)
            self._socket.bind((0, 0))  # without a port id of its own a socket is passed over by multicasts
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _LINK_GROUP)
        except OSError as error:
            raise KernelError("watch deleted links by netlink", error.errno or errno.EIO) from None

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def read(self) -> tuple[list[str], bool]:
        """Return (names that were deleted, whether messages were lost)."""
        names: list[str] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_BATCH)
            except BlockingIOError:
                return names, lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("read deleted links by netlink", error.errno or errno.EIO) from None
                lost = True
                continue
            # A port that leaves its bridge is reported as a deletion too, in the family of bridges.
            names += [
                link.parse(message.payload).name
                for message in wire.messages(data)
                if message.kind == link.DELLINK and link.family(message.payload) == 0
            ]


def _attach_filter(target: socket.socket) -> None:
    """Let only datagrams pass whose message is a DELLINK of family 0; the kernel sends one message in each."""
    loaded = struct.unpack(">H", struct.pack("=H", link.DELLINK))[0]  # BPF loads big-endian, the header is the host's
    program = (
        (_LOAD_HALF, 0, 0, 4),  # nlmsg_type
        (_JUMP_EQUAL, 0, 3, loaded),
        (_LOAD_BYTE, 0, 0, 16),  # ifi_family
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    target.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, header)
