"""Write-back of file data: the calls that `os` does not have. Each raises `OSError(errno, "call")`."""

import ctypes
import os

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def syncfs(fd: int) -> None:
    """Write everything of the file system that holds `fd` to the disk, and wait (syncfs(2)); errors are reported."""
    if _libc.syncfs(fd) < 0:
        raise OSError(ctypes.get_errno(), "syncfs")


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Begin to write a range without waiting (sync_file_range(2)), so that a later fsync has less to do.

    A hint: what fails here fails again, and is reported, at the fsync.
    """
    _libc.sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable (fsync(2) of the directory)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
