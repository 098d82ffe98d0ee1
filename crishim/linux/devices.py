"""Device nodes of the host: what stands at a path, and all of /dev for privileged containers."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

_NOT_SHARED = {"pts", "shm", "mqueue", "fd", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"}


@dataclass(frozen=True, slots=True)
class Device:
    """One node: `kind` is `c` or `b`, `path` is relative to where the look-up began, mode has permission bits only."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


def lookup(path: str) -> list[Device]:
    """Return the device at `path` (links followed), or all devices below it if it is a directory.

    Raises:
        OSError: nothing is there (ENOENT), or it is neither (ENODEV).
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return list(_walk(path, ""))
    device = _device("", status)
    if device is None:
        raise OSError(errno.ENODEV, f"{path} is not a device")
    return [device]


def host_devices() -> list[Device]:
    """Return all nodes of the host's /dev, but for those that each container has of its own."""
    return list(_walk("/dev", ""))


def _walk(top: str, inside: str) -> Iterator[Device]:
    try:
        entries = sorted(os.scandir(os.path.join(top, inside)), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if not inside and top == "/dev" and entry.name in _NOT_SHARED:
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(top, name)
        else:
            device = _device(name, status)
            if device is not None:
                yield device


def _device(path: str, status: os.stat_result) -> Device | None:
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    number = status.st_rdev
    return Device(
        path, kind, os.major(number), os.minor(number), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    )
