"""Packed layer bytes to tar bytes, by what they are and not by what their media type says.

gzip through isal (several members, as eStargz and pigz make them), zstd (several frames), or nothing. Both libraries
let go of the interpreter lock. Invariants: memory is bounded, however much the input expands: pieces are at most
`_PIECE` bytes; and what is needed has been imported when `pieces` returns, since a child that changes its root after
that must not import any more. Out of scope: how large a layer may get. Sources: RFC 1952, RFC 8878.
"""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from crishim.errors import DataLossError, FailedPreconditionError

Read = Callable[[int], bytes]
_CHUNK = 128 << 10
_PIECE = 128 << 10  # malloc gives larger ones back to the kernel each time: up to a third more CPU time, in page faults
_ZSTD_WINDOW = 128 << 20  # the largest that `zstd --ultra` makes without --long

_FOREIGN = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}


def load() -> None:
    """Import both libraries: for a process whose children can import nothing."""
    for name in ("isal.igzip_lib", "zstandard"):
        with contextlib.suppress(ImportError):  # said where it is needed
            import_module(name)


def pieces(read: Read, what: str) -> Iterator[bytes]:
    """Yield the unpacked bytes.

    Args:
        read: returns up to n bytes, `b""` at the end.
        what: names the blob in errors.

    Raises:
        DataLossError: the packed data are corrupt or truncated.
        FailedPreconditionError: packed in a way that layers are not.
    """
    first = b""
    while len(first) < 6 and (more := read(_CHUNK)):
        first += more
    if first.startswith(b"\x1f\x8b"):
        return _gzip(first, read, what)
    if first.startswith(b"\x28\xb5\x2f\xfd") or _skippable(first):
        return _zstd(first, read, what)
    for magic, name in _FOREIGN.items():
        if first.startswith(magic):
            raise FailedPreconditionError(f"{what} is packed with {name}; layers are tar, gzip or zstd")
    return _plain(first, read)


def _skippable(first: bytes) -> bool:
    """A zstd stream may begin with a skippable frame (magic 0x184D2A50 to 5F), as zstd:chunked does."""
    return len(first) >= 4 and 0x50 <= first[0] <= 0x5F and first[1:4] == b"\x2a\x4d\x18"


def _plain(first: bytes, read: Read) -> Iterator[bytes]:
    data = first
    while data:
        yield data
        data = read(_CHUNK)


def _gzip(first: bytes, read: Read, what: str) -> Iterator[bytes]:
    from isal import igzip_lib

    return _members(igzip_lib, first, read, what)


def _members(igzip_lib: Any, first: bytes, read: Read, what: str) -> Iterator[bytes]:
    """Yield the bytes of one gzip member after the other."""
    data = first
    while data:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        try:
            while not member.eof:
                if member.needs_input:
                    data = data or read(_CHUNK)
                    if not data:
                        raise DataLossError(f"{what}: the gzip data end too early")
                    piece, data = member.decompress(data, _PIECE), b""
                else:
                    piece = member.decompress(b"", _PIECE)
                if piece:
                    yield piece
        except igzip_lib.error as error:
            raise DataLossError(f"{what}: corrupt gzip data: {error}") from None
        data = bytes(member.unused_data).lstrip(b"\0")  # zeros may pad to a tape's block (gzip(1))
        while not data:
            more = read(_CHUNK)
            if not more:
                return
            data = more.lstrip(b"\0")
        while len(data) < 2 and (more := read(_CHUNK)):
            data += more
        if not data.startswith(b"\x1f\x8b"):
            raise DataLossError(f"{what}: something else follows the gzip data")


class Joined:
    """The bytes already taken, then the rest: a file-like object.

    Args:
        first: the beginning.
        read: returns up to n bytes of the rest.
    """

    def __init__(self, first: bytes, read: Read) -> None:
        self._first = first
        self._read = read

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, `b""` at the end."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._read(size)


def _zstd(first: bytes, read: Read, what: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise FailedPreconditionError(f"{what} is packed with zstd: install the Python package zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    source = Joined(first, read)
    reader = decompressor.stream_reader(source, read_size=_CHUNK, read_across_frames=True)  # type: ignore[arg-type]
    return _frames(reader, zstandard.ZstdError, what)


def _frames(reader: Any, fault: type[Exception], what: str) -> Iterator[bytes]:
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except fault as error:
        raise DataLossError(f"{what}: corrupt zstd data: {error}") from None
