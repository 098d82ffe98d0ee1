"""Mount and network namespaces of the bench's own, and what is mounted below a directory.

The whole run lives in fresh mount and network namespaces: bridges, addresses, firewall rules and mounts of every
system measured end with it, and the host's stay as they were. Places that the peers write to whatever their
configuration says are covered by empty file systems: nothing of a run that was cut off is left there, and a containerd
that serves this machine shares no state with the one measured. Source: unshare(2), mount_namespaces(7), netdevice(7).
"""

import atexit
import contextlib
import fcntl
import os
import socket
import struct

from crishim.linux import calls

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
PEERS_PLACES = (
    "/run/netns",
    "/run/containerd",
    "/run/runc",
    "/run/crun",
    "/run/nri",
    "/run/crio",
    "/run/containers",
    "/var/lib/cni",
    "/var/lib/containers",
    "/var/lib/crio",
    "/opt/containerd",
)


def isolate() -> None:
    """Move this process into new mount and network namespaces, private and with the loopback interface up."""
    calls.unshare(calls.CLONE_NEWNS | calls.CLONE_NEWNET)
    calls.mount("", "/", "", calls.MS_REC | calls.MS_PRIVATE, "")
    for place in PEERS_PLACES:
        cover(place)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def cover(place: str) -> None:
    """Hide `place` of the host under an empty file system of this namespace; a directory made for it goes again."""
    made = not os.path.isdir(place)
    os.makedirs(place, exist_ok=True)
    calls.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    if made:
        atexit.register(_remove_if_empty, place, os.getpid())


def _remove_if_empty(place: str, owner: int) -> None:
    """Take back a directory that was made for a mount; forked children leave it alone."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            calls.umount(place, calls.MNT_DETACH)
        with contextlib.suppress(OSError):
            os.rmdir(place)


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
