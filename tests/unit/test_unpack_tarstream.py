"""The tar reader beside Python's tarfile and GNU tar, and against damaged and hostile archives."""

import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.unpack.layerwriter import clean
from crishim.unpack.tarstream import DIRECTORY, TarError, nanoseconds, number, pax_records
from tests.support.abilities import need_program
from tests.support.tars import archive, everything, info, pax, sealed


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_three_formats_read_alike(form: int) -> None:
    long = "d/" + "x" * 90 + "/" + "y" * 90
    bodies = {"a": b"", "b": b"1" * 511, "c": b"2" * 512, "d": b"3" * 700_000, long: b"long"}

    def fill(file: tarfile.TarFile) -> None:
        for name, body in bodies.items():
            member = info(name, len(body), mode=0o4755, uid=1000, gid=2000, mtime=1_500_000_000)
            file.addfile(member, io.BytesIO(body))
        file.addfile(info("dir", type=tarfile.DIRTYPE, mode=0o1777))
        file.addfile(info("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3))
        file.addfile(info("link", type=tarfile.SYMTYPE, linkname="../t" * 20))

    found = everything(archive(fill, form))
    assert {entry.name.decode(): body for entry, body in found[:5]} == bodies
    first = found[0][0]
    assert (first.mode, first.uid, first.gid, first.mtime) == (0o4755, 1000, 2000, 1_500_000_000 * 10**9)
    assert (found[5][0].kind, found[5][0].mode) == (DIRECTORY, 0o1777)
    assert (found[6][0].major, found[6][0].minor) == (1, 3)
    assert found[7][0].link == b"../t" * 20


def test_large_ids_negative_and_fractional_times() -> None:
    big = info("x", uid=3_000_000_000, gid=2_999_999_999, mtime=-1.5)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        big.mtime = -2 if form == tarfile.GNU_FORMAT else -1.5
        ((entry, _),) = everything(archive(lambda file: file.addfile(big), form))
        assert (entry.uid, entry.gid) == (3_000_000_000, 2_999_999_999)
        assert entry.mtime == int(big.mtime * 10**9)
    assert nanoseconds(b"1.123456789123") == 1_123_456_789
    assert nanoseconds(b"-0.5") == -500_000_000
    assert nanoseconds(b"9" * 20) == (1 << 36) * 10**9


def test_names_keep_every_byte_and_binary_xattrs_survive() -> None:
    value = bytes(range(256)) + b"\n=x"
    records = [(b"path", b"a\nb\xff \xc3\xbc"), (b"SCHILY.xattr.user.bin", value)]
    ((entry, _),) = everything(pax(records) + archive(lambda file: file.addfile(info("short"))))
    assert entry.name == b"a\nb\xff \xc3\xbc"
    assert entry.xattrs == {b"user.bin": value}


@pytest.mark.parametrize("form", ["gnu", "posix 0.0", "posix 0.1", "posix 1.0"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    need_program("tar", "tar")
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for n in range(40):
            file.seek(n * 65536 + 4096)
            file.write(bytes([n + 1]) * 4096)
        file.truncate(5_000_000)
    kind, _, version = form.partition(" ")
    options = [f"--format={kind}", "--sparse", *([f"--sparse-version={version}"] if version else [])]
    command = ["tar", "-C", str(tmp_path), *options, "-cf", "-", "sparse", "sparse"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < 1_000_000
    (entry, body), _ = everything(data)
    assert (entry.name, body) == (b"sparse", path.read_bytes())


def test_the_end_of_an_archive() -> None:
    data = archive(lambda file: file.addfile(info("x", 5), io.BytesIO(b"hello")))
    member = data[:1024]
    for good in (data, member, member + bytes(512), member + bytes(1024) + b"trailing" * 1000, b"", bytes(1024)):
        assert len(everything(good)) == (1 if good.startswith(b"x") else 0)
    for bad in (data[:100], data[:512], data[:515], member + b"x", member + bytes(512) + b"y" * 512):
        with pytest.raises(TarError):
            everything(bad)


def test_a_corrupt_second_header_is_an_error() -> None:
    one = archive(lambda file: file.addfile(info("x", 5), io.BytesIO(b"hello")))[:1024]
    with pytest.raises(TarError, match="checksum"):
        everything(one + one[:10] + b"\xff" + one[11:])
    with pytest.raises(TarError, match="no tar archive"):
        everything(os.urandom(2048))


def test_hostile_headers() -> None:
    def sized(field: bytes, at: int) -> bytes:
        block = bytearray(archive(lambda file: file.addfile(info("x")))[:512])
        block[at : at + len(field)] = field
        return sealed(bytes(block))

    minus = struct.pack(">iq", -1, -5)
    for block in (sized(minus, 124), sized(minus[4:], 108), sized(b"99999999", 124), sized(b"7" * 11, 124)):
        with pytest.raises(TarError):
            everything(block)
    huge = archive(lambda file: file.addfile(info("p", 2 << 20, type=b"x"), io.BytesIO(bytes(2 << 20))))
    with pytest.raises(TarError, match="larger"):
        everything(huge)
    for bad in (b"5 a=", b"99 a=b\n", b"x a=b\n", b"6 abc\n", b"0 a=b\n", b"-1 a=b\n", b"7 a=bb"):
        with pytest.raises(TarError, match="corrupt"):
            pax_records(bad) and pytest.fail(repr(bad))
    with pytest.raises(TarError):
        number(b"12x")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./", b""),
        (b"/", b""),
        (b".", b""),
        (b"/etc/x", b"etc/x"),
        (b"./etc//x/", b"etc/x"),
        (b"a/./b/../c", b"a/c"),
        (b"../../etc/x", b"etc/x"),
        (b"..", b""),
        (b"...", b"..."),
        (b".hidden/.x", b".hidden/.x"),
        (b"a/..b", b"a/..b"),
    ],
)
def test_names_are_made_relative_to_the_root(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@given(st.binary(max_size=200))
def test_a_clean_name_never_leads_up(name: bytes) -> None:
    parts = clean(name).split(b"/")
    assert b".." not in parts
    assert clean(clean(name)) == clean(name)
