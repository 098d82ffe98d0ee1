"""Users and groups of the image: names are looked up in its own /etc/passwd and /etc/group, by our own code.

Never by pwd, grp or NSS: those would load the image's libraries into a process that is still root. The files are
opened inside the root, must be regular and at most 1 MiB; only a newline ends a line (passwd(5), group(5)); malformed
lines are skipped, as getpwent(3) does.
"""

import errno
import os
import stat
from typing import Any

from crishim.engine.execute.report import StepError
from crishim.linux import calls

_MAX_SIZE = 1 << 20
_MAX_ID = 2**32 - 2


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
    passwd = _read(root, "/etc/passwd")
    user: str = plan["user"]
    entry = _find_user(passwd, user or "0")
    if entry is None and not user.isdigit() and user:
        raise StepError(f"user {user}: not in the image's /etc/passwd", errno.ENOENT, "/etc/passwd")
    if entry is not None:
        name, uid, gid, home = entry
    else:
        name, uid, gid, home = "", _number(user or "0", "user"), 0, "/"
    groups_text = b""
    if plan["group"] or (plan["image_groups"] and name):
        groups_text = _read(root, "/etc/group")
    if plan["group"]:
        gid = _find_group(groups_text, plan["group"])
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


def _number(text: str, what: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= _MAX_ID:
        raise StepError(f"{what} {text}: not an id between 0 and {_MAX_ID}", errno.EINVAL, text)
    return number


def _find_user(text: bytes, wanted: str) -> tuple[str, int, int, str] | None:
    """Return (name, uid, gid, home) of a name, or of a uid if `wanted` is a number that is no name."""
    by_id = None
    key = wanted.encode()
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 6 or not fields[0] or not fields[2].isdigit() or not fields[3].isdigit():
            continue
        if fields[0] == key or (by_id is None and int(fields[2]) == (int(key) if key.isdigit() else -1)):
            found = (os.fsdecode(fields[0]), int(fields[2]), int(fields[3]), os.fsdecode(fields[5]))
            if fields[0] == key:
                return found
            by_id = found
    return by_id


def _find_group(text: bytes, wanted: str) -> int:
    key = wanted.encode()
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] == key and fields[2].isdigit():
            return int(fields[2])
    if wanted.isdigit():
        return _number(wanted, "group")
    raise StepError(f"group {wanted}: not in the image's /etc/group", errno.ENOENT, "/etc/group")


def _memberships(text: bytes, name: str) -> list[int]:
    key = os.fsencode(name)
    return [
        int(fields[2])
        for fields in (line.split(b":") for line in text.split(b"\n"))
        if len(fields) >= 4 and fields[2].isdigit() and key in fields[3].split(b",")
    ]
