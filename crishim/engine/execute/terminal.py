"""Pseudo-terminals of a container's own devpts, opened by fd so that no path of the image is trusted (pty(7))."""

import fcntl
import os

from crishim.linux import calls

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCSWINSZ = 0x5414
_TIOCSCTTY = 0x540E


def open_terminal(devpts: int, columns: int = 0, rows: int = 0) -> tuple[int, int]:
    """Return (master, slave) on the devpts whose top directory is `devpts`.

    The master comes from the devpts's own `ptmx`, the slave by TIOCGPTPEER: neither is looked up by a name that the
    container could have replaced (CVE-2025-52565).
    """
    flags = os.O_RDWR | os.O_NOCTTY
    master = calls.openat2(devpts, "ptmx", flags, 0, calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS)
    fcntl.ioctl(master, _TIOCSPTLCK, (0).to_bytes(4, "little"))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, flags | os.O_CLOEXEC)
    if columns and rows:
        set_size(master, columns, rows)
    return master, slave


def set_size(terminal: int, columns: int, rows: int) -> None:
    """Set the window size (ioctl_tty(2), TIOCSWINSZ)."""
    size = rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4)
    fcntl.ioctl(terminal, _TIOCSWINSZ, size)


def make_controlling(slave: int) -> None:
    """Make the terminal the session leader's controlling one."""
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
