"""Ids from what a child read of the image's files: bytes in, ids out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine.users import Identity, UnknownUserError, resolve, usual

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
me:x:1000:100::/home/me:/bin/sh
12:x:0:0::/evil:/bin/sh
bad:x:y:0::/:/bin/sh
big:x:4294967295:0::/:/bin/sh
short:x:7
\xff\xfe:x:8:8::/odd:/bin/sh
"""
GROUP = b"root:x:0:\nme:x:100:\nextra:x:77:other,me\nmore:x:78:me\nbad:x:z:me\nnone:x:79:\n"


def asked(user: str = "", group: str = "", groups: tuple[int, ...] = (), *, image_groups: bool = True) -> Identity:
    plan: dict[str, Any] = {"user": user, "group": group, "groups": list(groups), "image_groups": image_groups}
    return resolve(plan, PASSWD, GROUP)


@pytest.mark.parametrize(
    ("given_user", "ids"),
    [
        (asked(), (0, 0, [0], b"/root")),
        (asked("me"), (1000, 100, [100, 77, 78], b"/home/me")),
        (asked("1000"), (1000, 100, [100, 77, 78], b"/home/me")),
        (asked("1000", image_groups=False), (1000, 100, [100], b"/home/me")),
        (asked("me", "extra", (5, 77)), (1000, 77, [77, 5, 78], b"/home/me")),
        (asked("12"), (12, 0, [0], b"/")),
        (asked("555", "9"), (555, 9, [9], b"/")),
        (asked("\udcff\udcfe"), (8, 8, [8], b"/odd")),
    ],
)
def test_ids(given_user: Identity, ids: tuple[int, int, list[int], bytes]) -> None:
    assert given_user[:4] == ids


@pytest.mark.parametrize(
    ("user", "group", "words"),
    [
        ("nobody", "", "user nobody: not in the image's /etc/passwd"),
        ("bad", "", "user bad: not in"),
        ("big", "", "user big: not in"),
        ("short", "", "user short: not in"),
        ("me", "nogroup", "group nogroup: not in the image's /etc/group"),
        ("4294967295", "", "user 4294967295: not an id between 0 and 4294967294"),
        ("9" * 60, "", "user " + "9" * 32 + ": not an id"),
    ],
)
def test_refusals(user: str, group: str, words: str) -> None:
    with pytest.raises(UnknownUserError, match=words):
        asked(user, group)


@pytest.mark.parametrize("user", ["", "0", "root", "me", "7", "1000", "4294967295", "x", "00"])
@pytest.mark.parametrize("group", ["", "5"])
def test_what_is_usual_is_what_usual_files_say(user: str, group: str) -> None:
    plan: dict[str, Any] = {"user": user, "group": group, "groups": [], "image_groups": True}
    guess = usual(plan)
    if guess is not None:
        assert resolve(plan, b"root:x:0:0::/root:/bin/sh\n", b"root:x:0:\n") == guess
    assert (guess is not None) == (not group and user in {"", "0", "root", "7", "1000"})


def test_without_files_there_are_numbers_only() -> None:
    plan: dict[str, Any] = {"user": "7", "group": "", "groups": [], "image_groups": True}
    assert resolve(plan, b"", b"") == Identity(7, 0, [0], b"/", b"")


@given(st.binary(max_size=300), st.binary(max_size=300), st.text(max_size=5))
def test_whatever_the_files_hold_it_is_ids_or_a_refusal(passwd: bytes, group: bytes, user: str) -> None:
    plan: dict[str, Any] = {"user": user, "group": "", "groups": [], "image_groups": True}
    try:
        found = resolve(plan, passwd, group)
    except (UnknownUserError, UnicodeEncodeError):
        return
    assert all(0 <= number < 2**32 - 1 for number in (found.uid, found.gid, *found.groups))
