"""Fuzzing the tar reader: valid archives read as Python's tarfile reads them, damaged ones end in one kind of error."""

import io
import os
import tarfile
import tracemalloc
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crishim.unpack.tarstream import BLOCK, DIRECTORY, REGULAR, SYMLINK, TarError
from tests.support.fuzzing import fuzzed
from tests.support.tars import (
    SPARSE_FORMS,
    archive,
    contents,
    everything,
    header,
    info,
    padded,
    pax,
    sealed,
    sparse,
    stream,
)

# --- valid -----------------------------------------------------------------------------------------------------------

_FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
_LETTERS = st.sampled_from(["a", "b", ".", " ", "\n", "ü", "\udcff", "=", "\\", "'", "x" * 60, "日"])
_PART = st.lists(_LETTERS, min_size=1, max_size=5).map("".join)
_NAMES = st.lists(_PART, min_size=1, max_size=6).map("/".join)
_DATA = st.sampled_from([0, 1, 511, 512, 513, 70_000, 300_000]).map(
    lambda size: (b"0123456789" * (size // 10 + 1))[:size]
)


@st.composite
def _members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(
        st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
    )
    data = draw(_DATA) if kind == tarfile.REGTYPE else b""
    more: dict[str, Any] = {
        "mode": draw(st.integers(0, 0o7777)),
        "uid": draw(st.sampled_from([0, 1000, 0o7777777, 0o10000000, 4_000_000_000])),
        "gid": draw(st.sampled_from([0, 5, 4_000_000_000])),
        "mtime": draw(st.sampled_from([0, 1, 1_700_000_000, 1 << 34])),
        "type": kind,
    }
    if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        more["linkname"] = draw(_NAMES)
    if kind == tarfile.CHRTYPE:
        more |= {"devmajor": draw(st.integers(0, 4095)), "devminor": draw(st.integers(0, 0xFFFFF))}
    if draw(st.booleans()):
        names = st.sampled_from(["SCHILY.xattr.user.a", "SCHILY.xattr.security.capability", "comment", "mtime"])
        values = {"mtime": "1700000000.25"}
        more["pax_headers"] = {name: values.get(name, "ü=\n") for name in draw(st.sets(names))}
    return info(draw(_NAMES), len(data), **more), data


def _written(members: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    def fill(file: tarfile.TarFile) -> None:
        for member, data in members:
            file.addfile(member, io.BytesIO(data))

    try:
        return archive(fill, form)
    except ValueError:  # ustar has no room for the name or the number
        assume(False)
        raise


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@fuzzed(150)
@given(st.lists(_members(), max_size=5), _FORMATS)
def test_a_valid_archive_is_read_as_tarfile_reads_it(members: list[tuple[tarfile.TarInfo, bytes]], form: int) -> None:
    data = _written(members, form)
    found = everything(data)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as file:
        expected = file.getmembers()
        assert len(found) == len(expected)
        for (entry, body), member in zip(found, expected, strict=True):
            assert (entry.name.rstrip(b"/"), entry.link) == (_bytes(member.name).rstrip(b"/"), _bytes(member.linkname))
            assert (entry.mode, entry.uid, entry.gid) == (member.mode & 0o7777, member.uid, member.gid)
            assert abs(entry.mtime - member.mtime * 10**9) < 1000  # tarfile keeps a float
            assert entry.kind == member.type
            if member.isreg():
                content = file.extractfile(member)
                assert content is not None
                assert body == content.read()
            if member.ischr():
                assert (entry.major, entry.minor) == (member.devmajor, member.devminor)
            xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
            assert entry.xattrs == {_bytes(key[13:]): _bytes(value) for key, value in xattrs.items()}


@st.composite
def _holes(draw: st.DrawFn) -> tuple[int, list[tuple[int, bytes]]]:
    pieces: list[tuple[int, bytes]] = []
    position = 0
    for _ in range(draw(st.integers(0, 60))):
        position += draw(st.sampled_from([1, 512, 4096, 100_000]))
        size = draw(st.sampled_from([1, 511, 512, 4096]))
        pieces.append((position, bytes([len(pieces) % 255 + 1]) * size))
        position += size
    return position + draw(st.sampled_from([0, 1, 5000])), pieces


@fuzzed(60)
@given(st.sampled_from(SPARSE_FORMS), _holes())
def test_a_sparse_file_is_read_as_tarfile_reads_it(form: str, holes: tuple[int, list[tuple[int, bytes]]]) -> None:
    size, pieces = holes
    data = sparse(form, b"s", size, pieces) + header(b"next", 3) + padded(b"end") + bytes(1024)
    (entry, body), (after, end) = everything(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = file.extractfile(file.getmembers()[0])
        assert expected is not None
        assert body == expected.read()
    assert len(body) == size
    assert (entry.name, after.name, end) == (b"s", b"next", b"end")


# --- damaged ---------------------------------------------------------------------------------------------------------

_FIELDS = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)}
_FIELDS |= {"kind": (156, 1), "link": (157, 100), "magic": (257, 8), "major": (329, 8), "minor": (337, 8)}
_FIELDS |= {"prefix": (345, 155), "sparse": (386, 109)}
_VALUES = st.sampled_from(
    [
        b"\xff" * 12,
        b"\x80" + b"\xff" * 11,
        b"\x80" + bytes(11),
        b"7" * 12,
        b"9" * 12,
        b"-1",
        b" ",
        b"\0",
        b"x",
        b"S",
        b"g",
        b"L",
    ]
) | st.binary(min_size=1, max_size=24)
_KEYS = st.sampled_from(
    [
        b"path",
        b"linkpath",
        b"size",
        b"uid",
        b"mtime",
        b"GNU.sparse.map",
        b"GNU.sparse.major",
        b"GNU.sparse.name",
        b"GNU.sparse.realsize",
        b"GNU.sparse.size",
        b"GNU.sparse.offset",
        b"GNU.sparse.numbytes",
        b"SCHILY.xattr.user.a\0b",
        b"",
    ]
)
_PAX_VALUES = st.sampled_from(
    [b"1", b"0", b"-1", b"9" * 19, b"9" * 20, b"1,", b"0,1,5,1", b"a\0b", b"", b"/../x", b"1.5"]
)
_PAX = st.builds(pax, st.lists(st.tuples(_KEYS, _PAX_VALUES), max_size=4), st.sampled_from([b"x", b"g", b"x"]))
_VALID = st.one_of(
    st.builds(_written, st.lists(_members(), min_size=1, max_size=3), _FORMATS),
    st.builds(lambda form, holes: sparse(form, b"s", *holes), st.sampled_from(SPARSE_FORMS), _holes()),
)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """An archive with lies in headers whose checksums are right, odd PAX headers, lost and doubled blocks."""
    blocks = bytearray(draw(_VALID))
    for _ in range(draw(st.integers(0, 3))):
        count = len(blocks) // BLOCK
        at = BLOCK * draw(st.integers(0, max(0, count - 1)) | st.integers(0, min(3, max(0, count - 1))))
        action = draw(st.sampled_from(["field", "field", "field", "pax", "drop", "double", "byte", "cut"]))
        if action == "field":
            start, size = _FIELDS[draw(st.sampled_from(sorted(_FIELDS)))]
            value = draw(_VALUES)[:size]
            blocks[at + start : at + start + len(value)] = value
            blocks[at : at + BLOCK] = sealed(bytes(blocks[at : at + BLOCK]).ljust(BLOCK, b"\0"))
        elif action == "pax":
            blocks[at:at] = draw(_PAX)
        elif action == "drop":
            del blocks[at : at + BLOCK]
        elif action == "double":
            blocks[at:at] = blocks[at : at + BLOCK]
        elif action == "byte" and blocks:
            blocks[draw(st.integers(0, len(blocks) - 1))] = draw(st.integers(0, 255))
        elif action == "cut":
            del blocks[draw(st.integers(0, len(blocks))) :]
    return bytes(blocks)


@fuzzed(400)
@given(_damaged(), st.sampled_from([1, 511, 512, 513, 70_001]))
def test_a_damaged_archive_ends_in_entries_or_one_kind_of_error(data: bytes, size: int) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        source = stream(data, size)
        while (entry := source.next()) is not None:
            assert b"\0" not in entry.name + entry.link + b"".join(entry.xattrs)
            assert 0 <= entry.size < 1 << 63
            os.makedev(entry.major, entry.minor)
            if entry.kind in REGULAR and entry.extents is not None:
                assert 0 <= entry.real_size < 1 << 63
                for offset, length in entry.extents:
                    assert offset + length <= entry.real_size
                    source.copy(sink, length)
            elif entry.kind in REGULAR:
                source.copy(sink, entry.size)
    except TarError:
        return
    finally:
        os.close(sink)


@fuzzed(100)
@given(_damaged(), st.integers(1, 1500))
def test_where_the_pieces_end_does_not_matter(data: bytes, size: int) -> None:
    assert _told(data, size) == _told(data, max(1, len(data)))


def _told(data: bytes, size: int) -> list[tuple[object, ...]]:
    """Return all that is read of an archive in pieces of `size` bytes, the error included."""
    source = stream(data, size)
    found: list[tuple[object, ...]] = []
    try:
        while (entry := source.next()) is not None:
            kept = contents(source, entry) if entry.kind in REGULAR and entry.size < 1 << 20 else b""
            found.append((*vars(entry).items(), kept))
    except TarError as error:
        found.append((str(error),))
    return found


# --- found, or thought of --------------------------------------------------------------------------------------------

_HUGE = b"\x80" + b"\xff" * 11


_POINTS = [(n * 2, b"x") for n in range(65_537)]
LIES = {
    "a zero byte in a sparse file's name": (
        pax([(b"GNU.sparse.name", b"a\0b"), (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"0")]) + header(b"x"),
        "zero byte",
    ),
    "a zero byte in an xattr's name": (pax([(b"SCHILY.xattr.user.a\0b", b"v")]) + header(b"x"), "zero byte"),
    "a size beyond off_t": (header(b"x", fields=[(124, _HUGE)]), "out of range"),
    "a sparse size beyond off_t": (header(b"x", kind=b"S", fields=[(483, _HUGE)]), "out of range"),
    "a PAX sparse size beyond off_t": (
        pax([(b"GNU.sparse.realsize", b"9" * 20), (b"GNU.sparse.map", b"0,0")]) + header(b"x"),
        "out of range",
    ),
    "a major that no device has": (header(b"x", kind=b"3", fields=[(329, b"7777777\0")]), "no device"),
    "a negative minor": (header(b"x", kind=b"3", fields=[(337, b"\xff" * 8)]), "no device"),
    "endless headers": (pax([(b"path", b"x")]) * 100 + header(b"x"), "more than 64 extended headers"),
    "endless global records": (
        pax([(b"k%d" % n, b"v") for n in range(1001)], b"g") + header(b"x"),
        "more than 1000 records",
    ),
    **{
        f"endless extents {form}": (sparse(form, b"x", 1 << 30, _POINTS), "more than 65536 extents")
        for form in SPARSE_FORMS[::2]
    },
    "endless extents 1.0": (sparse("1.0", b"x", 1 << 30, _POINTS), "more than 65536 extents"),
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(case: str) -> None:
    data, part = LIES[case]
    with pytest.raises(TarError, match=part):
        everything(data)


@pytest.mark.parametrize(
    "first", [b"5\n", b"", b"65536\n" + b"1\n" * 70_000], ids=["in a number", "in the count", "after many numbers"]
)
def test_an_endless_sparse_map_is_given_up_with_bounded_memory(first: bytes) -> None:
    """A map that never ends its line would otherwise be collected up to the size that the header claims."""
    size = 40 << 20
    about = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")]
    data = pax(about) + header(b"x", size) + first + b"7" * (size - len(first))
    tracemalloc.start()
    try:
        with pytest.raises(TarError, match=r"sparse map|no number"):
            everything(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_map_of_the_largest_size_is_read() -> None:
    pieces = [(n * 2, b"x") for n in range(65_534)]
    for form in SPARSE_FORMS[2:]:
        ((_, body),) = everything(sparse(form, b"x", 1 << 20, pieces))
        assert body[:131_068:2] == b"x" * 65_534


def test_directories_of_old_tars_and_their_data_are_told_apart() -> None:
    (entry, _), (link, _) = everything(header(b"d/", 512) + bytes(512) + header(b"l", 512, SYMLINK))
    assert (entry.kind, link.size) == (DIRECTORY, 0)
