"""The policy of iptables' old filter tables, asked of the kernel without the iptables programs (ip_tables.h).

Tables that iptables-nft makes are nf_tables' own (`nft/listing`). Invariant: a table is asked for only if it is there:
asking for an absent one would make it, with all its hooks.
"""

import ctypes
import errno
import socket
import struct

from crishim.errors import KernelError

DROP, ACCEPT = "DROP", "ACCEPT"

_GET_INFO = 64
_GET_ENTRIES = 65
_FORWARD = 2
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo: name, valid hooks, entry and underflow a hook, count, size
_ENTRIES = struct.Struct("=32sI4x")  # struct ipt_get_entries: name, size, padding; the entries follow
_LEVELS = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_TARGET_OFFSET = {4: 88, 6: 140}  # of target_offset and next_offset in struct ipt_entry and ip6t_entry
_INTERFACE_OFFSET = {4: 16, 6: 64}  # of iniface and outiface there
_INTERFACE_SIZE = 16
_VERDICT = 32  # in struct xt_standard_target, after the name
_NAMES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
_VERDICTS = {-1: DROP, -2: ACCEPT}  # -NF_DROP - 1, -NF_ACCEPT - 1

_libc = ctypes.CDLL(None, use_errno=True)


def forward_chain(version: int) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return the policy of chain FORWARD of one IP version's filter table, DROP or ACCEPT, and what it accepts.

    That is ("in" or "out", interface) for each rule that names an interface and accepts. ("", empty) without a table.

    Raises:
        KernelError: the kernel refuses (it wants CAP_NET_ADMIN).
    """
    if not _has_filter(version):
        return "", frozenset()
    try:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_RAW, 255) as asking:
            info = _ask(asking, version, _GET_INFO, _INFO.pack(b"filter", *[0] * 13))
            size = _INFO.unpack(info)[13]
            request = _ENTRIES.pack(b"filter", size) + bytes(size)
            entries = _ask(asking, version, _GET_ENTRIES, request)[_ENTRIES.size :]
    except OSError as error:
        raise KernelError(f"look up the filter table of iptables for IPv{version}", error.errno or errno.EIO) from None
    return parse_chain(version, info, entries)


def parse_chain(version: int, info: bytes, entries: bytes) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return FORWARD's policy, the verdict of its last rule ("" if that is an unknown one), and what it accepts."""
    fields = _INFO.unpack(info)
    offset, underflow = fields[2 + _FORWARD], fields[7 + _FORWARD]
    accepted: set[tuple[str, str]] = set()
    try:
        while True:
            target, step = struct.unpack_from("=HH", entries, offset + _TARGET_OFFSET[version])
            (verdict,) = struct.unpack_from("=i", entries, offset + target + _VERDICT)
            if offset >= underflow or not step:
                return _VERDICTS.get(verdict, ""), frozenset(accepted)
            if _VERDICTS.get(verdict) == ACCEPT:
                accepted |= _interfaces(entries, offset + _INTERFACE_OFFSET[version])
            offset += step
    except struct.error:
        return "", frozenset()


def _interfaces(entries: bytes, offset: int) -> set[tuple[str, str]]:
    found = set()
    for way in ("in", "out"):
        name = entries[offset : offset + _INTERFACE_SIZE].rstrip(b"\0").decode("ascii", "replace")
        offset += _INTERFACE_SIZE
        if name:
            found.add((way, name))
    return found


def _has_filter(version: int) -> bool:
    try:
        with open(_NAMES[version].replace("/net/", "/thread-self/net/"), encoding="ascii") as file:
            return "filter" in file.read().split()
    except OSError:
        return False


def _ask(asking: socket.socket, version: int, option: int, request: bytes) -> bytes:
    """Call getsockopt with a request in the buffer that the answer comes in, which Python's own cannot."""
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    if _libc.getsockopt(asking.fileno(), _LEVELS[version], option, buffer, ctypes.byref(length)) < 0:
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
