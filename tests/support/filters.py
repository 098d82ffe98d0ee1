"""Seccomp filters that treat some calls in one way and allow all else, as plans have them."""

import binascii
import struct

from crishim.linux.seccomp.outcome import JEQ, LD, RET
from crishim.linux.seccomp.tables import numbers
from tests.support.agents import MACHINE

ALLOW, LOG, ERRNO, NO_ERRNO = 0x7FFF0000, 0x7FFC0000, 0x00050001, 0x00050000
KILL, KILL_THREAD, TRAP, NOTIFY, TRACE = 0x80000000, 0x00000000, 0x00030000, 0x7FC00000, 0x7FF00000


def refusing(action: int, *names: str) -> str:
    """Return a filter with an action for some calls."""
    tests = [insn for name in names for insn in ((JEQ, 0, 1, numbers(MACHINE)[name]), (RET, 0, 0, action))]
    program = b"".join(struct.pack("<HBBI", *insn) for insn in [(LD, 0, 0, 0), *tests, (RET, 0, 0, ALLOW)])
    return binascii.b2a_base64(program, newline=False).decode()


def kills(action: int) -> bool:
    """Tell whether an action ends the process."""
    return action in {KILL, KILL_THREAD, TRAP}
