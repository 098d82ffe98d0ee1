"""Users, groups and paths of an image, on temporary roots: names, ids, odd files, links that lead outside."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.engine import users
from crishim.engine.execute import paths, user
from crishim.engine.execute.report import StepError

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33::/var/www:/bin/sh
tester:x:1000:1000::/home/tester:/bin/sh
shared:x:1000:1001::/home/shared:/bin/sh
1002:x:0:0:named like a number:/root:/bin/sh
nohome:x:1003:1003:::/bin/sh
"""
GROUP = "root:x:0:\nwww-data:x:33:\nextra:x:50000:tester,www-data\nmore:x:50001:tester\n1004:x:0:\nstaff:x:50:\n"


class Root:
    """A root directory and its fd."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.fd = os.open(top, os.O_PATH | os.O_DIRECTORY)

    def resolve(
        self, asked: str = "", group: str = "", groups: tuple[int, ...] = (), *, merge: bool = True
    ) -> users.Identity:
        return user.resolve({"user": asked, "group": group, "groups": groups, "image_groups": merge}, self.fd)

    def write(self, passwd: str | bytes = PASSWD, group: str | bytes = GROUP) -> None:
        (self.top / "etc").mkdir(exist_ok=True)
        for name, text in (("passwd", passwd), ("group", group)):
            (self.top / "etc" / name).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    top = tmp_path / "root"
    top.mkdir()
    made = Root(top)
    yield made
    os.close(made.fd)


@pytest.fixture
def filled(root: Root) -> Root:
    root.write()
    return root


@pytest.mark.parametrize(
    ("asked", "group", "expected"),
    [
        ("", "", (0, 0, [0], b"/root")),
        ("0", "", (0, 0, [0], b"/root")),
        ("1000", "", (1000, 1000, [1000, 50_000, 50_001], b"/home/tester")),
        ("tester", "", (1000, 1000, [1000, 50_000, 50_001], b"/home/tester")),
        ("shared", "", (1000, 1001, [1001], b"/home/shared")),
        ("www-data", "1004", (33, 1004, [1004, 50_000], b"/var/www")),
        ("www-data", "staff", (33, 50, [50, 50_000], b"/var/www")),
        ("1003", "1004", (1003, 1004, [1004], b"/")),
        ("4242", "", (4242, 0, [0], b"/")),
        ("4294967294", "", (4_294_967_294, 0, [0], b"/")),
        # a number is an id, whatever the image calls so (CVE-2016-3697)
        ("1002", "", (1002, 0, [0], b"/")),
        ("1002", "1004", (1002, 1004, [1004], b"/")),
    ],
)
def test_users(filled: Root, asked: str, group: str, expected: tuple[int, int, list[int], bytes]) -> None:
    found = filled.resolve(asked, group)
    assert (found.uid, found.gid, found.groups, found.home) == expected


def test_supplementary_groups(filled: Root) -> None:
    assert filled.resolve("1000", "3000", (4000,)).groups == [3000, 4000, 50_000, 50_001]
    assert filled.resolve("1000", "3000", (4000,), merge=False).groups == [3000, 4000]
    assert filled.resolve("1000", "3000", (50_001, 3000, 50_001)).groups == [3000, 50_001, 50_000]
    assert filled.resolve("4242", "", (7,)).groups == [0, 7]


@pytest.mark.parametrize(
    ("asked", "group", "sentence"),
    [
        ("ghost", "", "user ghost: not in the image's /etc/passwd"),
        ("0", "ghosts", "group ghosts: not in the image's /etc/group"),
        ("4294967295", "", "user 4294967295: not an id between 0 and 4294967294"),
        ("99999999999999999999", "", "user 99999999999999999999: not an id between 0 and 4294967294"),
        ("9" * 5000, "", f"user {'9' * 32}: not an id between 0 and 4294967294"),
        ("0", "4294967295", "group 4294967295: not an id between 0 and 4294967294"),
        ("-1", "", "user -1: not in the image's /etc/passwd"),
        ("²", "", "user ²: not in the image's /etc/passwd"),
        ("\ud800", "", "user \ud800: not in the image's /etc/passwd"),
    ],
)
def test_refusals(filled: Root, asked: str, group: str, sentence: str) -> None:
    with pytest.raises(StepError) as caught:
        filled.resolve(asked, group)
    assert caught.value.message == sentence


def test_images_without_files(root: Root) -> None:
    assert root.resolve().uid == 0
    assert root.resolve("1000", "1000", (5,)).groups == [1000, 5]
    with pytest.raises(StepError):
        root.resolve("tester")


def test_malformed_lines_are_left_out(root: Root) -> None:
    lines = [
        b"tester",
        b":x:0:0::/:",
        b"tester:x:zero:0::/:",
        b"tester:x:0",
        b"tester:x:-1:0::/:",
        b"tester:x:4294967296:0::/:",
        b"tester:x:4294967295:0::/:",
        b"tester:x:0:99999999999::/:",
        b"#tester:x:0:0::/:",
        b"\x0ctester:x:7:7::/seven:",
        b"a\rtester:x:8:8::/eight:",
        "\u2028tester:x:9:9::/nine:".encode(),
        b"\xff:x:6:6::/\xff:",
        b"tester:x:1000:1000::/home:/bin/sh",
        b"tester:x:0:0::/second:",
        b"last:x:5:5::/last:/bin/sh",
    ]
    groups = [
        b"evil:x:0",
        b"evil:x:-1:tester",
        b"evil:x:4294967295:tester",
        b"other:x:77:a,tester,b",
        b"empty:x::tester",
    ]
    root.write(b"\n".join(lines), b"\n".join(groups))
    found = root.resolve("tester")
    assert (found.uid, found.home, found.groups) == (1000, b"/home", [1000, 77])
    assert root.resolve("last").uid == 5
    with pytest.raises(StepError):
        root.resolve("0", "evil2")


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(["", "tester", "7", "www-data"]))
def test_any_bytes_give_an_identity_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, passwd: bytes, group: bytes, asked: str
) -> None:
    made = Root(tmp_path_factory.mktemp("root"))
    made.write(passwd + b"\n:::\n", group)
    try:
        found = made.resolve(asked, "", (3,))
        assert 0 <= found.uid < 2**32 - 1
        assert all(0 <= gid < 2**32 - 1 for gid in found.groups)
    except StepError as error:
        assert asked in error.message  # noqa: PT017  either is right
    finally:
        os.close(made.fd)


def test_files_that_are_none(root: Root, tmp_path: Path) -> None:
    outside = tmp_path / "passwd"
    outside.write_text("tester:x:0:0::/:\n", encoding="ascii")
    etc = root.top / "etc"
    etc.mkdir()
    for name in ("passwd", "group"):
        os.mkfifo(etc / name)  # would block for ever
    assert root.resolve("1000").home == b"/"
    (etc / "passwd").unlink()
    for target in (str(outside), f"../../../../../../../../..{outside}", "/proc/self/environ"):
        (etc / "passwd").symlink_to(target)
        with pytest.raises(StepError):
            root.resolve("tester")
        (etc / "passwd").unlink()
    (etc / "passwd").write_bytes(b"tester:x:1:1::/:\n" + b"#" * (1 << 20))
    with pytest.raises(StepError):  # larger than any honest one
        root.resolve("tester")
    (etc / "passwd").unlink()
    (etc / "passwd").mkdir()
    assert root.resolve().uid == 0


def test_link_inside_the_image_is_followed(filled: Root) -> None:
    etc = filled.top / "etc"
    (etc / "passwd").rename(etc / "real")
    (etc / "passwd").symlink_to("/etc/real")
    assert filled.resolve("tester").uid == 1000


# --- paths ----------------------------------------------------------------------------------------


def inside(root: Root, fd: int) -> str:
    """Return a path of an fd below the root, and close it."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert path == str(root.top) or path.startswith(f"{root.top}/"), path
    return path.removeprefix(str(root.top)) or "/"


def test_missing_places_are_made(root: Root) -> None:
    assert inside(root, paths.ensure(root.fd, "/a/b/c", directory=True)) == "/a/b/c"
    assert inside(root, paths.ensure(root.fd, "/a/b/file", directory=False)) == "/a/b/file"
    assert inside(root, paths.ensure(root.fd, "/a/b/c/", directory=True)) == "/a/b/c"
    assert inside(root, paths.ensure(root.fd, "/", directory=True)) == "/"
    assert inside(root, paths.ensure(root.fd, "/a/../../../x", directory=True)) == "/x"
    assert (root.top / "a/b/file").read_bytes() == b""
    assert stat.S_IMODE((root.top / "a/b").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("link", "target", "asked", "expected"),
    [
        ("var", "/run", "/var/secrets/x", "/run/secrets/x"),
        ("var", "../../../../../run", "/var/x", "/run/x"),
        ("etc", "/usr/none/below", "/etc/x", "/usr/none/below/x"),
        ("one", "two/../three", "/one/x", "/three/x"),
        ("up", "..", "/up/up/x", "/x"),
        ("self", ".", "/self/self/x", "/x"),
    ],
)
def test_links_lead_inside(root: Root, link: str, target: str, asked: str, expected: str) -> None:
    if link == "one":
        (root.top / "two").mkdir()
    (root.top / link).symlink_to(target)
    assert inside(root, paths.ensure(root.fd, asked, directory=True)) == expected


def test_dangling_links_are_followed(root: Root, tmp_path: Path) -> None:
    (root.top / "etc").mkdir()
    (root.top / "etc/localtime").symlink_to("/usr/share/zoneinfo/NONE")
    assert inside(root, paths.ensure(root.fd, "/etc/localtime", directory=False)) == "/usr/share/zoneinfo/NONE"
    (root.top / "etc/out").symlink_to(str(tmp_path / "outside"))
    assert inside(root, paths.ensure(root.fd, "/etc/out", directory=False)).endswith("/outside")
    assert not (tmp_path / "outside").exists()


def test_links_without_an_end(root: Root) -> None:
    (root.top / "a").symlink_to("b")
    (root.top / "b").symlink_to("a")
    (root.top / "c").symlink_to("c/x")
    for path in ("/a", "/a/x", "/c"):
        with pytest.raises((OSError, StepError)):
            paths.ensure(root.fd, path, directory=True)


def test_kinds_are_checked(root: Root) -> None:
    (root.top / "file").write_bytes(b"")
    (root.top / "folder").mkdir()
    with pytest.raises(StepError, match="/file: is a file in the image, a directory must be mounted there"):
        paths.ensure(root.fd, "/file", directory=True)
    with pytest.raises(StepError, match="/folder: is a directory in the image, a file must be mounted there"):
        paths.ensure(root.fd, "/folder", directory=False)
    with pytest.raises(NotADirectoryError):
        paths.ensure(root.fd, "/file/x", directory=True)


names = st.sampled_from(["a", "b", "c", "..", "."])
targets = st.one_of(
    st.lists(names, min_size=1, max_size=5).map("/".join),
    st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)),
    st.just("../../../../../../../../../../tmp"),
)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "a/a", "b/c"]), targets), max_size=4),
    st.lists(names, min_size=1, max_size=5).map("/".join),
    st.booleans(),
)
def test_nothing_is_ever_made_outside(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str]], asked: str, directory: bool
) -> None:
    around = tmp_path_factory.mktemp("around")
    top = around / "root"
    top.mkdir()
    root = Root(top)
    for name, target in links:
        place = top / name
        if place.parent.is_dir() and not place.parent.is_symlink() and not os.path.lexists(place):
            place.symlink_to(target)
    try:
        inside(root, paths.ensure(root.fd, f"/{asked}", directory=directory))
    except (OSError, StepError):
        pass
    finally:
        os.close(root.fd)
    assert os.listdir(around) == ["root"]
