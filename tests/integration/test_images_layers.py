"""Layers in overlay's form: whiteouts, odd tars, escapes, and the two traps of layers that do not stand alone."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import CrishimError, DataLossError, ResourceExhaustedError
from crishim.linux.trees import remove_tree
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service, overlay
from tests.support.abilities import CLONE_NEWNS, can_mount, can_unshare
from tests.support.layout import Entry, directory, hardlink, symlink, tar

TREE = "find . -mindepth 1 | sort"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    if not can_unshare(CLONE_NEWNS) or not can_mount():
        pytest.skip("lacks the ability to make mount namespaces (CAP_SYS_ADMIN)")
    with FakeRegistry() as made:
        yield made


def _raw(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _named(name: str, data: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


async def _pulled(registry: FakeRegistry, root: Path, *layers: bytes) -> tuple[Service, tuple[str, ...]]:
    registry.image("t", list(layers))
    service = Service(str(root))
    await service.images.start()
    return service, await service.layers(f"{registry.host}/a:t")


async def _merged(registry: FakeRegistry, root: Path, script: str, *layers: list[Entry]) -> str:
    service, paths = await _pulled(registry, root, *(tar(layer) for layer in layers))
    try:
        return overlay(paths, script)
    finally:
        await service.images.stop()
        service.store.close()


TWICE = [
    directory("d", 0o750),
    Entry("d/kept", b"layer"),
    Entry("d/changed", b"layer"),
    Entry("d/.wh.whited"),
    directory("o"),
    Entry("o/.wh..wh..opq"),
    Entry("o/own"),
    Entry("kind", b"file"),
]
BETWEEN = [
    directory("d", 0o700),
    Entry("d/.wh.kept"),
    Entry("d/changed", b"between"),
    Entry("d/whited"),
    Entry("d/between"),
    directory("o"),
    Entry("o/other"),
    directory("kind"),
    Entry("kind/below"),
]
LOOK = "stat -c %a d; for f in d/* o/*; do test ! -e $f || echo $f; done; cat d/kept d/changed kind"
AFTER = ["750", "d/between", "d/changed", "d/kept", "o/own", "layerlayerfile"]


@pytest.mark.parametrize(
    ("order", "mounted"), [("tt", "t"), ("ttt", "t"), ("tbt", "bt"), ("tbtbt", "bt"), ("ttbbtt", "bt"), ("btt", "bt")]
)
async def test_a_layer_that_is_listed_again_counts_where_it_comes_last(
    registry: FakeRegistry, tmp_path: Path, order: str, mounted: str
) -> None:
    packed = {"t": tar(TWICE), "b": tar(BETWEEN)}
    service, paths = await _pulled(registry, tmp_path, *(packed[which] for which in order))
    try:
        assert len(paths) == len(set(paths)) == len(mounted)
        told = overlay(paths, LOOK).split()
        assert told == (AFTER if "b" in order else [word for word in AFTER if word != "d/between"])
        (image,) = service.images.list()
        assert len(image.layers) == len(order)
        chain = json.loads(service.images.info(image.id)["info"])["chainID"]
        wanted = image.layers[0].diff_id
        for layer in image.layers[1:]:
            wanted = "sha256:" + hashlib.sha256(f"{wanted} {layer.diff_id}".encode()).hexdigest()
        assert chain == wanted
    finally:
        await service.images.stop()
        service.store.close()


async def test_a_layer_listed_again_that_leans_on_what_is_below_leans_on_each_place(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Its hard link takes the file from the layers below it, which are not the same the second time."""
    leans = [hardlink("copy", "file")]
    first, second = [Entry("file", b"one")], [Entry("file", b"two"), Entry(".wh.copy")]
    assert await _merged(registry, tmp_path, "cat copy", first, leans, second, leans) == "two"


async def test_layers_listed_again_are_counted_once(registry: FakeRegistry, tmp_path: Path) -> None:
    layer = tar([Entry("file", bytes(100_000))])
    sizes = []
    for count in (1, 3):
        registry.image(f"t{count}", [layer] * count)
        async with Service(str(tmp_path / str(count))) as service:
            await service.images.pull(f"{registry.host}/a:t{count}")
            (image,) = service.images.list()
            (shown,) = service.images.details("", dangling=False)
            sizes.append(image.size)
            assert shown.shared == 0
    assert sizes[0] == sizes[1]


BASE = [directory("d"), Entry("d/old"), Entry("d/older"), directory("e"), Entry("e/x"), Entry("f")]


@pytest.mark.parametrize("opaque_first", [True, False])
async def test_opaque_hides_what_is_below_whatever_the_order(
    registry: FakeRegistry, tmp_path: Path, opaque_first: bool
) -> None:
    mark = Entry("d/.wh..wh..opq")
    layer = [directory("d", 0o700), *([mark, Entry("d/new")] if opaque_first else [Entry("d/new"), mark])]
    assert (await _merged(registry, tmp_path, "ls d; stat -c %a d", BASE, layer)).split() == ["new", "700"]


async def test_types_change_over_layers_and_absent_paths_are_removed_in_vain(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    layer = [
        Entry("d", b"now a file"),
        directory("f"),
        Entry("f/in"),
        Entry("e/.wh.x"),
        Entry(".wh.nothing"),
        Entry("no/where/.wh.nothing"),
    ]
    out = await _merged(registry, tmp_path, f"cat d; echo; {TREE}", BASE, layer)
    assert out.split("\n") == ["now a file", "./d", "./e", "./f", "./f/in", ""]


async def test_a_directory_removed_and_made_again_shows_nothing_old(registry: FakeRegistry, tmp_path: Path) -> None:
    before = [Entry(".wh.d"), directory("d"), Entry("d/a")]
    after = [directory("e"), Entry("e/b"), Entry(".wh.e"), Entry(".wh.f"), Entry("f", b"new")]
    out = await _merged(registry, tmp_path, f"{TREE}; cat f", BASE, [*before, *after])
    assert out.split() == ["./d", "./d/a", "./e", "./e/b", "./f", "new"]


async def test_an_opaque_root_hides_everything(registry: FakeRegistry, tmp_path: Path) -> None:
    out = await _merged(registry, tmp_path, TREE, BASE, [Entry(".wh..wh..opq"), Entry("only")], [Entry("top")])
    assert out.split() == ["./only", "./top"]


async def test_odd_but_legal(registry: FakeRegistry, tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    capable, data = _named("bin/ping", b"#!", mode=0o755)
    capable.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")}
    layer = _raw(
        _named("/etc/x", b"1", mode=0o600, uid=7, gid=8, mtime=0),
        _named("./etc/./y", b"2", mtime=-5),
        _named("twice", b"first"),
        _named("twice", b"second", mode=0o4711),
        _named("un/listed/link", type=tarfile.LNKTYPE, linkname="/etc/x"),
        _named("n" * 120 + "/" + "m" * 120, b"long"),
        _named("pipe", type=tarfile.FIFOTYPE, mode=0o640),
        _named("null", type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        _named("disk", type=tarfile.BLKTYPE, mode=0o660, devmajor=7, devminor=200, gid=6),
        _named("sticky", type=tarfile.DIRTYPE, mode=0o3777, gid=50, mtime=1000),
        _named("sticky/file", b"x", gid=0, mtime=99),
        (capable, data),
        _named("abs", type=tarfile.SYMTYPE, linkname="/etc/shadow", uid=3),
        _named("a\nb\udcff", b"bytes"),
        _named(".wh..wh.plnk/1.2", b""),
    )
    service, (path,) = await _pulled(registry, tmp_path, layer)
    try:
        x = os.stat(f"{path}/etc/x")
        assert (x.st_mode & 0o7777, x.st_uid, x.st_gid, x.st_mtime, x.st_nlink) == (0o600, 7, 8, 0, 2)
        assert os.stat(f"{path}/etc/y").st_mtime == -5
        assert (Path(path) / "twice").read_bytes() == b"second"
        assert os.stat(f"{path}/twice").st_mode & 0o7777 == 0o4711
        parent = os.stat(f"{path}/un/listed")
        assert (parent.st_mode & 0o7777, parent.st_uid) == (0o755, 0)
        assert os.path.exists(f"{path}/{'n' * 120}/{'m' * 120}")
        assert stat.S_ISFIFO(os.stat(f"{path}/pipe").st_mode)
        assert os.stat(f"{path}/null").st_rdev == os.makedev(1, 3)
        assert os.stat(f"{path}/disk").st_rdev == os.makedev(7, 200)
        sticky = os.stat(f"{path}/sticky")
        assert (sticky.st_mode & 0o7777, sticky.st_gid, sticky.st_mtime) == (0o3777, 50, 1000)
        assert os.stat(f"{path}/sticky/file").st_gid == 0
        assert os.getxattr(f"{path}/bin/ping", "security.capability") == capability
        assert (os.readlink(f"{path}/abs"), os.lstat(f"{path}/abs").st_uid) == ("/etc/shadow", 3)
        assert os.path.exists(f"{path}/a\nb\udcff")
    finally:
        await service.images.stop()
        service.store.close()


async def test_overlays_own_xattrs_are_never_taken_from_an_image(registry: FakeRegistry, tmp_path: Path) -> None:
    info, data = _named("d", type=tarfile.DIRTYPE)
    info.pax_headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/secret",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.mine": "kept",
    }
    service, (path,) = await _pulled(registry, tmp_path, _raw((info, data)))
    assert os.listxattr(f"{path}/d") == ["user.mine"]
    await service.images.stop()
    service.store.close()


ESCAPES: dict[str, list[Entry]] = {
    "absolute link": [symlink("x", "/"), Entry("x/pwned", b"!")],
    "climbing link": [symlink("a/x", "../../../../../.."), Entry("a/x/pwned", b"!")],
    "climbing name": [Entry("../../pwned", b"!")],
    "link to a link": [symlink("y", "x"), symlink("x", "/.."), Entry("y/pwned", b"!")],
    "dangling link": [symlink("x", "/deep/down"), Entry("x/pwned", b"!")],
    "through a file link": [symlink("pwned", "/target"), Entry("pwned", b"!")],
    "whiteout through a link": [symlink("x", "/tmp"), Entry("x/.wh.pwned")],
}


@pytest.mark.parametrize("case", ESCAPES)
async def test_what_would_escape_lands_inside(registry: FakeRegistry, tmp_path: Path, case: str) -> None:
    before = {name for top in ("/", "/tmp", "/deep") if os.path.isdir(top) for name in os.listdir(top)}
    out = await _merged(registry, tmp_path, "find . -name pwned", [directory("tmp"), Entry("tmp/keep")], ESCAPES[case])
    after = {name for top in ("/", "/tmp", "/deep") if os.path.isdir(top) for name in os.listdir(top)}
    assert "pwned" not in after
    assert "deep" not in after - before
    assert bool(out.strip()) == (case != "whiteout through a link")


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ([Entry(".wh...")], "whiteout"),
        ([Entry("a/.wh..")], "whiteout"),
        ([Entry(".wh.")], "whiteout"),
        ([hardlink("x", "../../etc/shadow")], "etc/shadow"),
        ([symlink("x", "x"), Entry("x/y")], "x"),
        ([symlink("x", "y"), symlink("y", "x"), Entry("x/z")], "x"),
        ([hardlink("x", "x")], "linked"),
        ([Entry("x", kind=b"Z")], "unknown type"),
        ([symlink("f", "g"), Entry("g", b""), Entry("f/below")], "f"),
    ],
)
async def test_what_makes_no_sense_ends_in_an_error_and_no_trace(
    registry: FakeRegistry, tmp_path: Path, layer: list[Entry], part: str
) -> None:
    registry.image("t", [tar(layer)])
    async with Service(str(tmp_path)) as service:
        with pytest.raises(CrishimError) as caught:
            await service.layers(f"{registry.host}/a:t")
        assert part in str(caught.value)
        await service.images.settled()
        assert service.files() == []


async def test_links_of_a_lower_layer_lead_entries_where_they_lead(registry: FakeRegistry, tmp_path: Path) -> None:
    base = [
        directory("usr"),
        directory("usr/lib", 0o2750, 5, 6),
        Entry("usr/lib/a"),
        symlink("lib", "usr/lib"),
        symlink("abs", "/lib/../lib"),
        symlink("up", "../../../.."),
        symlink("dangling", "/not/there"),
    ]
    top = [
        Entry("dangling/z"),
        Entry("lib/b"),
        Entry("lib/.wh.a"),
        Entry("abs/sub/c"),
        Entry("up/at-root"),
        hardlink("hard", "lib/a"),
    ]
    script = f"readlink lib; stat -c '%a %u %g' usr/lib; {TREE}"
    out = (await _merged(registry, tmp_path, script, base, top)).split("\n")
    assert out[:2] == ["usr/lib", "2750 5 6"]
    assert set(out[2:]) == {
        "./abs",
        "./at-root",
        "./dangling",
        "./not",
        "./not/there",
        "./not/there/z",
        "./hard",
        "./lib",
        "./up",
        "./usr",
        "./usr/lib",
        "./usr/lib/b",
        "./usr/lib/sub",
        "./usr/lib/sub/c",
        "",
    }


async def test_an_unlisted_parent_keeps_what_it_has_below(registry: FakeRegistry, tmp_path: Path) -> None:
    base = _raw(
        _named("home", type=tarfile.DIRTYPE, mode=0o711, uid=1, gid=2, mtime=5),
        _named("home/u", type=tarfile.DIRTYPE, mode=0o700, uid=1000, gid=1000, mtime=77),
    )
    info, _ = _named("home/v", type=tarfile.DIRTYPE, mode=0o750)
    info.pax_headers = {"SCHILY.xattr.user.a": "b"}
    middle = _raw((info, b""))
    service, paths = await _pulled(registry, tmp_path, base, middle, tar([Entry("home/u/f"), Entry("home/v/f")]))
    try:
        out = overlay(paths, "stat -c '%a %u %g %Y' home home/u; stat -c %a home/v; ls home/u")
        assert out.split("\n") == ["711 1 2 5", "700 1000 1000 77", "750", "f", ""]
        assert os.getxattr(f"{paths[2]}/home/v", "user.a") == b"b"
    finally:
        await service.images.stop()
        service.store.close()


async def test_a_hard_link_to_a_lower_layers_file_is_a_copy_of_it(registry: FakeRegistry, tmp_path: Path) -> None:
    base = [directory("d"), Entry("d/f", b"content" * 1000, 0o4755, uid=9)]
    top = [directory("d"), hardlink("g", "d/f"), hardlink("h", "g"), Entry("d/.wh.f")]
    out = await _merged(registry, tmp_path, "ls d; stat -c '%a %u %s %h' g h; cmp g h && echo same", base, top)
    assert out.split("\n") == ["4755 9 7000 2", "4755 9 7000 2", "same", ""]


async def test_a_hard_link_below_a_link_of_its_own_layer(registry: FakeRegistry, tmp_path: Path) -> None:
    """Found by the fuzzer: name and target lead through links that the layers below do not have."""
    base = [directory("usr"), directory("usr/lib"), Entry("usr/lib/x", b"of the base")]
    upper = [
        symlink("lib", "usr/lib"),
        hardlink("lib/y", "lib/x"),
        hardlink("lib/z", "usr/lib/x"),
        hardlink("lib/z", "lib/y"),
    ]
    script = "cat usr/lib/y usr/lib/z; [ usr/lib/y -ef usr/lib/z ] && readlink lib"
    assert await _merged(registry, tmp_path, script, base, upper) == "of the baseof the baseusr/lib\n"


async def test_one_layer_under_different_bases_is_right_on_each(registry: FakeRegistry, tmp_path: Path) -> None:
    top = tar([Entry("d/f")])
    alone = tar([directory("x"), Entry("x/y")])
    registry.image("one", [tar([directory("d", 0o700, 1, 1)]), top, alone])
    registry.image("two", [tar([directory("d", 0o711, 2, 2)]), top, alone])
    registry.image("three", [top, alone])
    async with Service(str(tmp_path)) as service:
        seen = {tag: await service.layers(f"{registry.host}/a:{tag}") for tag in ("one", "two", "three")}
        modes = {tag: os.stat(f"{paths[-2]}/d").st_mode & 0o777 for tag, paths in seen.items()}
        assert modes == {"one": 0o700, "two": 0o711, "three": 0o755}
        assert len({paths[-1] for paths in seen.values()}) == 1


async def test_the_roots_own_attributes_come_from_below(registry: FakeRegistry, tmp_path: Path) -> None:
    base = _raw(_named("./", type=tarfile.DIRTYPE, mode=0o1777, uid=4), _named("./a"))
    service, paths = await _pulled(registry, tmp_path, base, tar([Entry("b")]), tar([Entry("c")]))
    info = os.stat(paths[-1])
    assert (info.st_mode & 0o7777, info.st_uid) == (0o1777, 4)
    await service.images.stop()
    service.store.close()


async def test_bombs_and_too_many_entries(registry: FakeRegistry, tmp_path: Path) -> None:
    zeros = tar([Entry("zeros", bytes(20_000_000))])
    registry.image("bomb", [zeros])
    registry.image("many", [tar([Entry(f"f{n}") for n in range(50)])])
    limits: dict[str, Any] = {"max_ratio": 100, "ratio_floor_bytes": 1_000_000, "max_entries": 40}
    async with Service(str(tmp_path), **limits) as service:
        with pytest.raises(ResourceExhaustedError, match="max_ratio"):
            await service.images.pull(f"{registry.host}/a:bomb")
        with pytest.raises(DataLossError, match="40 entries"):
            await service.images.pull(f"{registry.host}/a:many")
        await service.images.settled()
        assert service.files() == []
    async with Service(str(tmp_path), max_layer_bytes=10_000_000) as service:
        with pytest.raises(ResourceExhaustedError, match="max_layer_bytes"):
            await service.images.pull(f"{registry.host}/a:bomb")


async def test_the_child_can_reach_nothing_but_the_layer(registry: FakeRegistry, tmp_path: Path) -> None:
    """A device node is made but cannot be opened, and the capabilities are those of the design."""
    from crishim.unpack import extract

    layer = tmp_path / "layer"
    layer.mkdir()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            dest = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
            extract.confine(dest, (writing,))
            os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            try:
                os.close(os.open("null", os.O_RDWR))
                told = "opened"
            except OSError as error:
                told = str(error.errno)
            told += " " + " ".join(os.listdir("/../..")) + " " + str(os.path.exists("/proc/self"))
            os.write(writing, told.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert told == "13 null False"
    assert os.listdir(layer) == ["null"]


def test_trees_of_any_depth_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x", encoding="utf-8")
    fd = os.open(top, os.O_RDONLY)
    os.symlink(outside, "link", dir_fd=fd)
    for n in range(3000):
        os.mkdir("d", dir_fd=fd)
        if n % 500 == 0:
            os.mknod("file", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(str(top))
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(outside) == ["kept"]
