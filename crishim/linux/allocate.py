"""Blocks for a file ahead of need: fallocate(2) with the one mode that `os` does not have."""

import ctypes
import os

_KEEP_SIZE = 1
_fallocate = ctypes.CDLL(None, use_errno=True)["fallocate"]
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def allocate(fd: int, offset: int, length: int) -> None:
    """Allocate a range of a file without changing its size, content or what is allocated already.

    Raises:
        OSError: ENOSPC, or EOPNOTSUPP where the file system cannot.
    """
    if _fallocate(fd, _KEEP_SIZE, offset, length) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"fallocate: {os.strerror(number)}")
