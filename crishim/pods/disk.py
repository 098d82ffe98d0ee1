"""Whether there is disk space to make anything: pods, containers and starts are refused where there is none.

What ends and removes things is never refused: it works on a full disk, by the store's reserve, and the space that is
left is for it. Two file systems count: the root's, with the store and what containers write, and the state's, with
sockets and journals. Out of scope: images, whose own writes say that the disk is full.
"""

import os

from crishim.errors import ResourceExhaustedError
from crishim.paths import Paths

ROOT_BYTES = 1 << 20
STATE_BYTES = 64 << 10
INODES = 16


def problem(paths: Paths) -> str:
    """Return what is full, in a sentence, or "" if there is space."""
    for path, least in ((paths.root, ROOT_BYTES), (paths.state, STATE_BYTES)):
        try:
            disk = os.statvfs(path)
        except OSError as error:
            return f"the file system of {path} cannot be looked at: {os.strerror(error.errno or 0)}"
        free = disk.f_bavail * disk.f_frsize
        if free < least:
            return (
                f"the file system of {path} is full ({free >> 10} KiB free): remove containers or images, or enlarge it"
            )
        if disk.f_files and disk.f_ffree < INODES:  # some file systems count none
            return f"the file system of {path} has no inodes left: remove containers or images, or enlarge it"
    return ""


def check(paths: Paths) -> None:
    """Raise ResourceExhaustedError if nothing more can be made."""
    text = problem(paths)
    if text:
        raise ResourceExhaustedError(text)
