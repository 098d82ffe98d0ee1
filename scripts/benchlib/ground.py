"""A file system that nobody used before: ext4 in a sparse file on a loop device, for rows that write many files.

What a file system was used for before decides how fast it creates files (an ext4 without a journal is ten times slower
for minutes after trees were deleted), so that runs one after the other on the host's own are no comparison. Here each
run gets a fresh one, nothing is deleted on it while something is measured, and it goes as a whole at the end.

Out of scope: what is measured. Invariant: the loop device goes with its last mount (autoclear), also if the bench is
killed: its mount namespace ends with it.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator

from scripts.benchlib import mounts

SIZE = 4 << 30
ABOUT = (
    "each pull on a fresh ext4 (defaults) in a sparse file on a loop device, the earlier ones' files not deleted before"
)


@contextlib.contextmanager
def fresh(directory: str, scratch: str) -> Iterator[bool]:
    """Mount a new file system on `directory` for the time of the block; False where loop devices are not to be had.

    Args:
        directory: an existing directory.
        scratch: where the sparse file lies; the disk below decides how fast all of it is.
    """
    descriptor, path = tempfile.mkstemp(prefix="ground-", dir=scratch)
    os.ftruncate(descriptor, SIZE)
    os.close(descriptor)
    try:
        made = _made(path) and _done("mount", "-t", "ext4", "-o", "loop", path, directory)
        if made:
            os.chmod(directory, 0o711)
            os.sync()  # what making it wrote is not the next measurement's
        yield made
    finally:
        mounts.detach_below(directory)
        os.unlink(path)


def _made(path: str) -> bool:
    """Make the file system whole at once: the kernel must not go on initialising it in the background."""
    return _done("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", path)


def _done(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
