"""Users and groups of the image: names are looked up in its own /etc/passwd and /etc/group, by our own code.

Never by pwd, grp or NSS: those would load the image's libraries into a process that is still root. The files are
opened inside the root, must be regular and at most 1 MiB; only a newline ends a line (passwd(5), group(5)); malformed
lines are skipped, as getpwent(3) does, and so are ids beyond the kernel's. A number is always an id, never a
name that happens to consist of digits: the image's author could map it to 0 (CVE-2016-3697).
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from crishim.engine.execute.report import StepError
from crishim.linux import calls

_MAX_SIZE = 1 << 20
_MAX_ID = 2**32 - 2
_MAX_DIGITS = 20


class Identity:
    """What the process will run as."""

    __slots__ = ("gid", "groups", "home", "name", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str, name: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home
        self.name = name


def resolve(plan: dict[str, Any], root: int) -> Identity:
    """Return the identity that a UserPlan asks for (see its docstring for the fields).

    The primary group is always among the groups; the request's groups come first, in their order, then the image's
    (KEP-3619: policy Merge; Strict leaves the image's file aside).

    Raises:
        StepError: a name is not in the image's files.
    """
    user: str = plan["user"] or "0"
    wanted = _number(user, "user") if _is_number(user) else user
    entry = _find_user(_read(root, "/etc/passwd"), wanted)
    if entry is not None:
        name, uid, gid, home = entry
    elif isinstance(wanted, int):
        name, uid, gid, home = "", wanted, 0, "/"
    else:
        raise StepError(f"user {user}: not in the image's /etc/passwd", errno.ENOENT, "/etc/passwd")
    group: str = plan["group"]
    groups_text = b""
    if (group and not _is_number(group)) or (plan["image_groups"] and name):
        groups_text = _read(root, "/etc/group")
    if group:
        gid = _number(group, "group") if _is_number(group) else _find_group(groups_text, group)
    groups = [gid, *plan["groups"]]
    if plan["image_groups"] and name:
        groups += _memberships(groups_text, name)
    return Identity(uid, gid, list(dict.fromkeys(groups)), home or "/", name)


def _read(root: int, path: str) -> bytes:
    try:
        fd = calls.openat2(
            root, path, os.O_RDONLY | os.O_NONBLOCK, 0, calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
        )
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            return b""
        return os.read(fd, status.st_size)
    finally:
        os.close(fd)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, what: str) -> int:
    number = _id(text)
    if number < 0:
        raise StepError(f"{what} {text[:32]}: not an id between 0 and {_MAX_ID}", errno.EINVAL, text[:32])
    return number


def _id(text: str | bytes) -> int:
    """Return the id that decimal digits stand for; -1 for anything else and for what the kernel does not take."""
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        return -1
    number = int(text)
    return number if number <= _MAX_ID else -1


def _find_user(text: bytes, wanted: int | str) -> tuple[str, int, int, str] | None:
    """Return (name, uid, gid, home) of the first entry with this uid or name."""
    key = _bytes(wanted) if isinstance(wanted, str) else b""
    for line in _lines(text):
        fields = line.split(b":")
        if len(fields) < 6 or not fields[0]:
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid < 0 or gid < 0:
            continue
        if fields[0] == key or uid == wanted:
            return os.fsdecode(fields[0]), uid, gid, os.fsdecode(fields[5])
    return None


def _lines(text: bytes) -> Iterator[bytes]:
    """Return the lines one by one: a megabyte of them at once would swell the keeper, whose memory this may be."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _find_group(text: bytes, wanted: str) -> int:
    key = _bytes(wanted)
    for line in _lines(text):
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] == key and _id(fields[2]) >= 0:
            return _id(fields[2])
    raise StepError(f"group {wanted}: not in the image's /etc/group", errno.ENOENT, "/etc/group")


def _memberships(text: bytes, name: str) -> list[int]:
    key = os.fsencode(name)
    return [
        _id(fields[2])
        for fields in (line.split(b":") for line in _lines(text))
        if len(fields) >= 4 and _id(fields[2]) >= 0 and key in fields[3].split(b",")
    ]
