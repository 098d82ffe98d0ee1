"""Archives as people hand them over, packed or plain, to tar bytes; and back to a packed layer.

More forms than a layer may have (`unpack.decompress`): bzip2 and xz too, which the standard library reads.
Invariant: memory is bounded however much the input expands, and limits on size and ratio are kept while it does.
Sources: RFC 1952, RFC 8878, the .xz file format.
"""

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import Protocol

from crishim.errors import DataLossError, ResourceExhaustedError
from crishim.images.settings import ImageSettings
from crishim.unpack import decompress

Read = Callable[[int], bytes]
_CHUNK = 256 << 10
_PIECE = 1 << 20
_XZ_MEMORY = 256 << 20  # `xz -9` needs 65 MiB to unpack; what asks for more is no archive that people make
_LEVEL = 2


class _Member(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _xz() -> _Member:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


_EXTRA: dict[bytes, tuple[str, Callable[[], _Member]]] = {
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": ("xz", _xz),
}


class Opened:
    """A packed stream, unpacked within the limits.

    Args:
        read: returns up to n packed bytes, `b""` at the end.
        settings: limits on ratio.
        what: names the stream in errors.
    """

    def __init__(self, read: Read, settings: ImageSettings, what: str) -> None:
        self._source = read
        self._settings = settings
        self._what = what
        self._packed = 0
        self.unpacked = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield the unpacked bytes.

        Raises:
            DataLossError: corrupt or truncated.
            FailedPreconditionError: packed in an unknown way.
            ResourceExhaustedError: it expands beyond all measure.
        """
        first = b""
        while len(first) < 6 and (more := self._read(_CHUNK)):
            first += more
        for magic, (name, member) in _EXTRA.items():
            if first.startswith(magic):
                source = self._members(name, member, first)
                break
        else:
            source = decompress.pieces(decompress.Joined(first, self._read).read, self._what)
        for piece in source:
            self.unpacked += len(piece)
            self._check()
            yield piece

    def _read(self, size: int) -> bytes:
        data = self._source(size)
        self._packed += len(data)
        return data

    def _check(self) -> None:
        limits = self._settings
        if self.unpacked > limits.ratio_floor_bytes and self.unpacked > limits.max_ratio * max(self._packed, 1):
            raise ResourceExhaustedError(
                f"{self._what} unpacks to more than {limits.max_ratio} times its size (images.max_ratio)"
            )

    def _members(self, name: str, make: Callable[[], _Member], first: bytes) -> Iterator[bytes]:
        """Yield the bytes of one packed member after the other."""
        data = first
        while data:
            member = make()
            try:
                while not member.eof:
                    if member.needs_input:
                        data = data or self._read(_CHUNK)
                        if not data:
                            raise DataLossError(f"{self._what}: the {name} data end too early")
                    piece = member.decompress(data, _PIECE)
                    data = b""
                    if piece:
                        yield piece
            except (lzma.LZMAError, OSError) as error:
                raise DataLossError(f"{self._what}: corrupt {name} data: {error}") from None
            # Zeros may pad an .xz stream to a multiple of four bytes.
            data = bytes(member.unused_data).lstrip(b"\0")
            while not data and (more := self._read(_CHUNK)):
                data = more.lstrip(b"\0")


def gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces as one gzip member without name and time."""
    from isal import isal_zlib

    packer = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, 31)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
