"""Orphans of a test that made this process their reaper: the role is given back, and the zombies are reaped.

A test may take the role (prctl(2), PR_SET_CHILD_SUBREAPER) to see what a keeper leaves; if it fails half-way, every
later daemon's keepers would end as zombies of the test process.
"""

import contextlib
import ctypes
import os

from tests.support import machine

_SET, _GET = 36, 37


def give_back() -> None:
    """Stop being a subreaper, and reap what came here while we were one."""
    libc = ctypes.CDLL(None, use_errno=True)
    flag = ctypes.c_int(0)
    libc.prctl(_GET, ctypes.byref(flag), 0, 0, 0)
    if not flag.value:
        return
    libc.prctl(_SET, 0, 0, 0, 0)
    for row in machine.processes().values():
        if row.parent == os.getpid() and row.state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(row.pid, os.WNOHANG)
