"""sd_notify(3): tells systemd, or whoever set NOTIFY_SOCKET, how the daemon is; without it nothing happens.

A message is lost rather than that it holds anything up. Out of scope: the watchdog.
"""

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send assignments like `READY=1`; tell whether anyone was told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = f"\0{address[1:]}"  # an abstract socket (unix(7))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def reloading() -> None:
    """Say that a reload began; systemd wants the time of it (Type=notify-reload)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def ready(status: str) -> None:
    """Say that the daemon serves, with one line for `systemctl status`."""
    notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def stopping(status: str) -> None:
    """Say that the daemon is ending."""
    notify("STOPPING=1", f"STATUS={status}")
