"""How a filter's values are read."""

import errno
import struct

import pytest

from crishim.linux.seccomp.outcome import Refusal, refusal, run


def always(value: int) -> bytes:
    return struct.pack("<HBBI", 6, 0, 0, value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (0x80000000, Refusal(kills=True)),
        (0x00000000, Refusal(kills=True)),
        (0x00030000, Refusal(kills=True)),
        (0x00050001, Refusal(kills=False, errno=1)),
        (0x00050000, Refusal(kills=False, errno=0)),
        (0x0005FFFF, Refusal(kills=False, errno=4095)),
        (0x7FC00000, Refusal(kills=False, errno=errno.ENOSYS)),
        (0x7FF00000, Refusal(kills=False, errno=errno.ENOSYS)),
        (0x7FFC0000, None),
        (0x7FFF0000, None),
    ],
)
def test_a_filters_value(value: int, meant: Refusal | None) -> None:
    assert refusal(always(value), 59, 0xC000003E) == meant


@pytest.mark.parametrize("program", [b"", struct.pack("<HBBI", 5, 0, 0, 9), struct.pack("<HBBI", 0x99, 0, 0, 0)])
def test_what_the_kernel_would_not_take(program: bytes) -> None:
    with pytest.raises(ValueError, match=r"no return|instruction 0x99"):
        run(program, 59, 0xC000003E)
