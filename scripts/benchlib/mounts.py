"""Mount and network namespaces of the bench's own, and what is mounted below a directory.

The whole run lives in fresh mount and network namespaces: bridges, addresses, firewall rules and mounts of every
system measured end with it, and the host's stay as they were. Source: unshare(2), mount_namespaces(7), netdevice(7).
"""

import contextlib
import fcntl
import socket
import struct

from crishim.linux import calls

SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def isolate() -> None:
    """Move this process into new mount and network namespaces, private and with the loopback interface up."""
    calls.unshare(calls.CLONE_NEWNS | calls.CLONE_NEWNET)
    calls.mount("", "/", "", calls.MS_REC | calls.MS_PRIVATE, "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def below(directory: str) -> list[str]:
    """Return the mount points in this namespace at or below `directory`, innermost first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            target = line.split(" ")[4]
            if target == directory or target.startswith(f"{directory}/"):
                found.append(target)
    return found[::-1]


def detach_below(directory: str) -> None:
    """Unmount everything at or below `directory`."""
    for target in below(directory):
        with contextlib.suppress(OSError):
            calls.umount(target, calls.MNT_DETACH)
