"""Users and groups of the image: what was read of its /etc/passwd and /etc/group → ids. Pure: bytes in, ids out.

Never by pwd, grp or NSS: those would load the image's libraries. Only a newline ends a line (passwd(5), group(5));
malformed lines are skipped, as getpwent(3) does, and so are ids beyond the kernel's. A number is always an id, never a
name that happens to consist of digits: the image's author could map it to 0 (CVE-2016-3697).
"""

import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_MAX_ID = 2**32 - 2
_MAX_DIGITS = 20


class UnknownUserError(Exception):
    """A name is not in the image's files, or a number is no id.

    Args:
        sentence: for the user.
        number: errno that says the same.
        path: the file that was looked into, or the number itself.
    """

    def __init__(self, sentence: str, number: int, path: str) -> None:
        super().__init__(sentence)
        self.errno = number
        self.path = path


class Identity(NamedTuple):
    """What a process will run as."""

    uid: int
    gid: int
    groups: list[int]
    home: bytes
    name: bytes


def resolve(plan: dict[str, Any], passwd: bytes, group_file: bytes) -> Identity:
    """Return the identity that a UserPlan asks for (see its docstring for the fields).

    The primary group is always among the groups; the request's come first, in their order, then the image's (KEP-3619:
    policy Merge; Strict leaves the image's file aside).

    Raises:
        UnknownUserError: with the sentence for the user.
    """
    user: str = plan["user"] or "0"
    wanted = _number(user, "user") if _is_number(user) else _bytes(user)
    entry = _find_user(passwd, wanted)
    if entry is None and isinstance(wanted, bytes):
        raise UnknownUserError(f"user {user}: not in the image's {PASSWD}", errno.ENOENT, PASSWD)
    name, uid, gid, home = entry or (b"", int(wanted), 0, b"/")
    group: str = plan["group"]
    if group:
        gid = _number(group, "group") if _is_number(group) else _find_group(group_file, group)
    groups = [gid, *plan["groups"]]
    if plan["image_groups"] and name:
        groups += _memberships(group_file, name)
    return Identity(uid, gid, list(dict.fromkeys(groups)), home or b"/", name)


def needs_groups(plan: dict[str, Any]) -> bool:
    """Tell whether the image's group file matters to a UserPlan."""
    group: str = plan["group"]
    return bool(group and not _is_number(group)) or bool(plan["image_groups"])


def usual(plan: dict[str, Any]) -> Identity | None:
    """Return what a UserPlan most often comes to: root as all images have it, a number that no file knows; or None."""
    user, group = plan["user"], plan["group"]
    if group or plan["groups"]:
        return None
    if user in {"", "0", "root"}:
        return Identity(0, 0, [0], b"/root", b"root")
    return Identity(_id(user), 0, [0], b"/", b"") if _is_number(user) and _id(user) > 0 else None


def _bytes(name: str) -> bytes:
    """Return a name as the files write it; what stands for no bytes at all is found in none of them."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, what: str) -> int:
    number = _id(text)
    if number < 0:
        raise UnknownUserError(f"{what} {text[:32]}: not an id between 0 and {_MAX_ID}", errno.EINVAL, text[:32])
    return number


def _id(text: str | bytes) -> int:
    """Return the id that decimal digits stand for; -1 for anything else and for what the kernel does not take."""
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        return -1
    number = int(text)
    return number if number <= _MAX_ID else -1


def _find_user(text: bytes, wanted: int | bytes) -> tuple[bytes, int, int, bytes] | None:
    for line in _lines(text):
        fields = line.split(b":")
        if len(fields) < 6 or not fields[0]:
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid >= 0 and gid >= 0 and wanted in {fields[0], uid}:
            return fields[0], uid, gid, fields[5]
    return None


def _find_group(text: bytes, wanted: str) -> int:
    key = _bytes(wanted)
    for line in _lines(text):
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] == key and _id(fields[2]) >= 0:
            return _id(fields[2])
    raise UnknownUserError(f"group {wanted}: not in the image's {GROUP}", errno.ENOENT, GROUP)


def _memberships(text: bytes, name: bytes) -> list[int]:
    return [
        _id(fields[2])
        for fields in (line.split(b":") for line in _lines(text))
        if len(fields) >= 4 and _id(fields[2]) >= 0 and name in fields[3].split(b",")
    ]


def _lines(text: bytes) -> Iterator[bytes]:
    """Return the lines one by one: a megabyte of them at once would swell the keeper."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1
