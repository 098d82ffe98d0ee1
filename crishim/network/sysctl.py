"""The few kernel switches that a network needs, under /proc/sys/net (ip-sysctl in the kernel's documentation).

Only the bridge's own switches and the two global ones for forwarding are touched; a switch that is already right is
not written. Invariant: switching IPv6 forwarding on does not cost the host the routes it learned from router
advertisements (the kernel ignores those on a router unless accept_ra is 2).
"""

import errno
import os

from crishim.errors import KernelError

_NET = "/proc/sys/net"


def set_switch(path: str, value: str) -> bool:
    """Write one switch below /proc/sys/net, like `ipv4/ip_forward`; return whether it had another value.

    Raises:
        KernelError: names the file and the value.
    """
    try:
        with open(f"{_NET}/{path}", encoding="ascii") as file:
            if file.read().strip() == value:
                return False
        with open(f"{_NET}/{path}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise KernelError(f"write {_NET}/{path}={value}", error.errno or errno.EIO) from None
    return True


def enable_forwarding(version: int) -> list[str]:
    """Let the host forward packets of one IP version; return what was changed, as `name=value`."""
    if version == 4:
        return ["net.ipv4.ip_forward=1"] if set_switch("ipv4/ip_forward", "1") else []
    if forwards(6):
        return []
    changed = []
    for name in sorted(os.listdir(f"{_NET}/ipv6/conf")):
        if name not in {"all", "default", "lo"} and read(f"ipv6/conf/{name}/accept_ra") == "1":
            set_switch(f"ipv6/conf/{name}/accept_ra", "2")
            changed.append(f"net.ipv6.conf.{name}.accept_ra=2")
    set_switch("ipv6/conf/all/forwarding", "1")
    return [*changed, "net.ipv6.conf.all.forwarding=1"]


def forwards(version: int) -> bool:
    """Tell whether the host forwards packets of an IP version."""
    return read("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding") == "1"


def read(path: str) -> str:
    """Return a switch's value, "" where there is no such switch (an interface may go while we look)."""
    try:
        with open(f"{_NET}/{path}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
