"""A small real file system to be filled: tmpfs, or ext4 on a loop device."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.support.abilities import can_mount, need_program


@contextmanager
def small_file_system(directory: str, kind: str, mebibytes: int) -> Iterator[None]:
    """Mount a new file system on a directory for the time of the block; skips where that cannot be done."""
    if not can_mount():
        pytest.skip("lacks the ability to mount file systems (CAP_SYS_ADMIN)")
    file = f"{directory}.img"
    try:
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "tmpfs", directory]
        else:
            need_program("mkfs.ext4", "e2fsprogs")
            with open(file, "wb") as image:
                image.truncate(mebibytes << 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", file], check=True)
            command = ["mount", "-t", "ext4", "-o", "loop", file, directory]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"lacks the ability to mount {kind} (loop devices)")
        os.chmod(directory, 0o700)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", directory], check=True)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(file)


def crowd(directory: str | os.PathLike[str]) -> str:
    """Write a file there until nothing more fits; return its path."""
    path = os.path.join(directory, "crowd")
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return path
