"""Sealed memory files (memfd_create(2), fcntl(2) "File Sealing").

Loaded in the tiny processes too, so it imports little. Sealing against writes waits some 150 ms for others to let go
of the file's pages, and then gives EBUSY: a page in a pipe, or one that the kernel is just moving, is enough. That
passes, so it is tried again; a file that cannot be sealed is closed, never used unsealed.
"""

import errno
import fcntl
import os

SEAL, SHRINK, GROW, WRITE = 0x1, 0x2, 0x4, 0x8
_F_ADD_SEALS = 1033
_TRIES = 4


def seal(fd: int, what: str) -> None:
    """Forbid for good every change of a memfd's content, size and seals.

    Raises:
        OSError: it could not be sealed, also after some tries; `fd` is closed then.
    """
    for left in reversed(range(_TRIES)):
        try:
            fcntl.fcntl(fd, _F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)
        except OSError as error:
            if error.errno == errno.EBUSY and left:
                continue
            os.close(fd)
            raise OSError(error.errno, f"seal {what}") from None
        return
