"""A FUSE file system that never answers: whoever touches it waits, as on a file server that is gone.

The kernel's INIT request stays unanswered, so every look at the mount waits until the connection is closed (fuse(4)).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crishim.linux import calls


@contextmanager
def silent(directory: str) -> Iterator[str]:
    """Mount one on a directory; who waits for it gets an error at the end. Skips where FUSE cannot be mounted."""
    fd = _mount(directory)
    try:
        yield directory
    finally:
        os.close(fd)
        calls.umount(directory, calls.MNT_DETACH)


@contextmanager
def broken(directory: str) -> Iterator[str]:
    """Mount one whose server has ended on a directory: every look at it is an error at once. Skips as `silent` does."""
    os.close(_mount(directory))
    try:
        yield directory
    finally:
        calls.umount(directory, calls.MNT_DETACH)


def _mount(directory: str) -> int:
    """Mount one; return its connection, which breaks when it is closed."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"lacks FUSE: /dev/fuse: {error.strerror}")
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        calls.mount("silent", directory, "fuse", calls.MS_NOSUID | calls.MS_NODEV, options)
    except OSError as error:
        os.close(fd)
        pytest.skip(f"lacks mounts of FUSE: {error.strerror}")
    return fd
