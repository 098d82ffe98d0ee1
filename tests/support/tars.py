"""Tar archives for tests of the layer reader: made by tarfile or by hand, and read back through `TarStream`.

By hand is what tarfile cannot write: binary PAX values, GNU's four sparse forms, headers that lie.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence

from crishim.unpack.tarstream import BLOCK, REGULAR, Entry, TarStream


def archive(fill: Callable[[tarfile.TarFile], object], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return the archive that `fill` adds members to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        fill(file)
    return buffer.getvalue()


def info(name: str, size: int = 0, **more: object) -> tarfile.TarInfo:
    """Return a member with any of TarInfo's attributes."""
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in more.items():
        setattr(member, key, value)
    return member


def sealed(block: bytes) -> bytes:
    """Return a header with its checksum made right."""
    data = block[:148] + b" " * 8 + block[156:]
    return data[:148] + b"%06o\0 " % sum(data) + data[156:]


def header(name: bytes, size: int = 0, kind: bytes = b"0", fields: Iterable[tuple[int, bytes]] = ()) -> bytes:
    """Return a ustar header; `fields` are (offset, bytes) that replace what stands there, before the checksum."""
    block = bytearray(
        name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
        b"        " + kind + bytes(100) + b"ustar\x0000" + bytes(247)
    )
    for at, field in fields:
        block[at : at + len(field)] = field
    return sealed(bytes(block))


def padded(data: bytes) -> bytes:
    """Return data filled up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def pax(records: Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """Return a PAX header with its payload; keys and values may be any bytes."""
    payload = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        size = len(body) + 1
        while len(str(size)) + len(body) != size:
            size = len(str(size)) + len(body)
        payload += str(size).encode() + body
    return header(b"pax", len(payload), kind) + padded(payload)


SPARSE_FORMS = ("old", "0.0", "0.1", "1.0")


def sparse(form: str, name: bytes, size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """Return a sparse file as GNU tar writes it ("Storing Sparse Files"); `pieces` are (offset, data), ascending."""
    data = b"".join(part for _, part in pieces)
    pairs = [*((offset, len(part)) for offset, part in pieces), (size, 0)]
    if form == "old":
        described = [b"%011o\0%011o\0" % pair for pair in pairs]
        rest = described[4:]
        groups = [rest[n : n + 21] for n in range(0, len(rest), 21)]
        fields = [(386, b"".join(described[:4])), (482, b"\1" if groups else b"\0"), (483, b"%011o\0" % size)]
        extensions = b"".join(
            b"".join(group).ljust(504, b"\0") + (b"\1" if group is not groups[-1] else b"\0") + bytes(7)
            for group in groups
        )
        # GNU's magic: the sparse map lies where ustar has its prefix.
        return header(name, len(data), b"S", [(257, b"ustar  \0"), *fields]) + extensions + padded(data)
    about = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pairs))]
    if form == "0.0":
        for offset, length in pairs:
            about += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    elif form == "0.1":
        about += [(b"GNU.sparse.map", b",".join(b"%d,%d" % pair for pair in pairs)), (b"GNU.sparse.name", name)]
    else:
        about = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name)]
        about += [(b"GNU.sparse.realsize", b"%d" % size)]
        data = padded(b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)) + data
    stored = name if form == "0.0" else b"GNUSparseFile.0/" + name[:50]
    return pax(about) + header(stored, len(data)) + padded(data)


# --- reading ---------------------------------------------------------------------------------------------------------


def stream(data: bytes, size: int = 70_001) -> TarStream:
    """Return a reader of the archive in odd pieces."""
    return TarStream(data[start : start + size] for start in range(0, len(data), size))


def contents(source: TarStream, entry: Entry) -> bytes:
    """Return the data of a regular file, holes filled."""
    fd = os.memfd_create("contents")
    try:
        if entry.extents is None:
            source.copy(fd, entry.size)
        else:
            for offset, size in entry.extents:
                os.lseek(fd, offset, os.SEEK_SET)
                source.copy(fd, size)
            os.ftruncate(fd, entry.real_size)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def everything(data: bytes) -> list[tuple[Entry, bytes]]:
    """Return all entries and the data of the regular files."""
    found = []
    source = stream(data)
    while (entry := source.next()) is not None:
        found.append((entry, contents(source, entry) if entry.kind in REGULAR else b""))
    source.drain()
    return found
