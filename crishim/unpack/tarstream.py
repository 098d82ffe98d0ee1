"""A tar reader for layers: entries out of a stream of pieces, in one pass, keeping only the current piece.

Reads ustar, PAX (local and global headers, binary xattr values), GNU (long names, base-256 numbers) and both GNU's
old and PAX's sparse forms, from untrusted input. Standard library only and no imports after the first line: this
runs in a forked child with its root changed. `tarfile` is not used because it is slower, imports much more, ends
without an error on a corrupt header, and its decoding of names and of PAX values loses bytes.

Out of scope: what the entries mean for a layer (`extract`); whether the bytes are the promised ones (the daemon
checks the digest of the whole stream). Invariant: bytes are read in order and each exactly once; a stream that ends
inside a header or a file is an error, one that ends between entries is not (like Go's reader, which the field uses).
Sources: pax(1) of POSIX.1-2017; tar(5) and "Storing Sparse Files" of GNU tar's manual.
"""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

BLOCK = 512
_ZEROS = bytes(BLOCK)
_HEADER_LIMIT = 1 << 20  # a PAX or long-name payload; names end at PATH_MAX, xattr values at 64 KiB
_HEADERS_LIMIT = 64  # PAX and long-name headers of one entry; GNU tar and Go write up to three
_GLOBAL_LIMIT = 1000  # records that global PAX headers may leave for all entries to come
_SEEN_LIMIT = 256  # combinations of mode, owner and time that are remembered
_SPARSE_LIMIT = 1 << 16  # extents of one sparse file
_SIZE_LIMIT = (1 << 63) - 1  # off_t
_ID_LIMIT = 0xFFFFFFFF  # the kernel's "no change"
_MAJOR_LIMIT, _MINOR_LIMIT = 1 << 12, 1 << 20  # the kernel's dev_t
_SECOND = 1_000_000_000
_FAR = 1 << 36  # seconds; later or earlier times are clamped, as no file system holds them

REGULAR = frozenset((b"0", b"\0", b"7", b"S"))
HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"1", b"2", b"3", b"4", b"5", b"6"
_NO_DATA = frozenset((HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
_DEVICES = frozenset((CHARACTER, BLOCK_DEVICE))
_OLD_REGULAR = frozenset((b"0", b"\0"))
_XATTR = b"SCHILY.xattr."
_EXTENDED = frozenset((b"x", b"g", b"L", b"K"))
_PLAIN = frozenset((b"0", HARD_LINK, SYMLINK, DIRECTORY))  # the others are rare, or the archive's end
_TRUNCATED = "the tar archive ends too early: it is truncated"

Extents = list[tuple[int, int]]


class TarError(Exception):
    """The stream is no tar archive that can be understood; the message is for the user."""


class Entry:
    """One member: what it is called, its attributes, and how many bytes of the stream are its data.

    Attributes:
        size: bytes in the stream.
        mtime: nanoseconds.
        extents: (offset, size) of each piece of a sparse file's data; None for all others.
        real_size: a sparse file's own size.
    """

    # Values of the class: few entries have others, and making an object of thirteen takes as long as reading a header.
    link = b""
    size = major = minor = real_size = 0
    xattrs: Mapping[bytes, bytes] = MappingProxyType({})
    extents: Extents | None = None

    def __init__(self, name: bytes, kind: bytes, mode: int, uid: int, gid: int, mtime: int) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime


def number(field: bytes) -> int:
    """Return a header's number: octal text, or GNU's base-256 with the high bit set."""
    if field[-1:] == b"\0":
        try:
            return int(field[:-1], 8)
        except ValueError:
            pass
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value & ~(1 << (bits - 1))
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise TarError(f"corrupt tar header: {field!r} is no number") from None


def decimal(text: bytes) -> int:
    """Return a number of a PAX record."""
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"corrupt tar header: {text[:40]!r} is no number")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Return PAX's decimal seconds, possibly negative, possibly with a fraction, as nanoseconds."""
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    value = decimal(whole or b"0") * _SECOND
    if fraction:
        value += decimal(fraction[:9].ljust(9, b"0"))
    return clamp(-value if text.startswith(b"-") else value)


def clamp(value: int) -> int:
    """Return a time in nanoseconds that the kernel's 64 bits can take."""
    return max(-_FAR * _SECOND, min(value, _FAR * _SECOND))


def checksum_fits(block: bytes) -> bool:
    """Tell whether a header's checksum is right: the sum of its bytes, those of the field itself taken as spaces.

    Adler-32's low half is that sum plus one, modulo 65521, and costs a tenth of `sum()`. Old tars summed signed bytes.
    """
    try:
        stored = int(block[148:154], 8) if block[154:156] == b"\0 " else number(block[148:156])
    except (TarError, ValueError):
        return False
    if zlib.adler32(block) & 0xFFFF == (1 + stored - 256 + sum(block[148:156])) % 65521:
        return True
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256
    return stored == signed


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the (key, value) pairs of a PAX header, in order; keys may repeat (GNU sparse 0.0)."""
    records = []
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 20)
        if space < 0:
            raise TarError("corrupt PAX header: a record has no length")
        end = start + decimal(data[start:space])
        if end <= space + 1 or end > len(data) or data[end - 1] != 0x0A:
            raise TarError("corrupt PAX header: a record's length is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise TarError("corrupt PAX header: a record has no value")
        records.append((key, value))
        start = end
    return records


class TarStream:
    """Reads entries from a stream of bytes.

    Args:
        pieces: the archive, in pieces of any size; what they raise passes through.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._data = b""
        self._view = memoryview(b"")
        self._at = self._end = 0  # where in the current piece, and its size
        self._left = 0  # bytes of the current entry's data that are still in the stream
        self._pad = 0
        self._global: dict[bytes, bytes] = {}
        self._seen: dict[bytes, tuple[int, int, int, int]] = {}

    def next(self) -> Entry | None:
        """Return the next entry, or None at the end of the archive; what is left of the last one's data is skipped."""
        at = self._at + self._left + self._pad
        end = at + BLOCK
        self._left = self._pad = 0
        if end <= self._end:
            self._at = end
            block = self._data[at:end]
        else:
            self._skip(at - self._at)
            block = self._take(BLOCK)
        if (kind := block[156:157]) in _PLAIN and checksum_fits(block):
            return self._entry(block, kind)
        return self._extended(block)

    def _extended(self, block: bytes) -> Entry | None:
        """Return the entry that begins with this header, which may be the first of several, or the end's."""
        pax: list[tuple[bytes, bytes]] = []
        name = link = b""
        for _ in range(_HEADERS_LIMIT + 1):
            if self._is_end(block):
                return None
            kind = block[156:157]
            if kind not in _EXTENDED:
                return self._entry(block, kind, name, link, pax)
            payload = self._payload(number(block[124:136]))
            if kind == b"x":
                pax = pax_records(payload)
            elif kind == b"g":
                self._global.update(pax_records(payload))
                if len(self._global) > _GLOBAL_LIMIT:
                    raise TarError(f"global PAX headers have more than {_GLOBAL_LIMIT} records")
            elif kind == b"L":
                name = payload.partition(b"\0")[0]
            else:
                link = payload.partition(b"\0")[0]
            block = self._take(BLOCK)
        raise TarError(f"a tar entry has more than {_HEADERS_LIMIT} extended headers")

    def copy(self, fd: int, size: int) -> None:
        """Move `size` bytes of the entry's data to `fd` at its position."""
        if size > self._left:
            raise TarError("corrupt tar header: a sparse map is longer than the file's data")
        self._left -= size
        at = self._at
        end = at + size
        while end > self._end:  # the rest is in the pieces to come
            _write(fd, self._view[at:])
            end -= self._end
            self._load()
            at = 0
        self._at = end
        _write(fd, self._view[at:end])

    def drain(self) -> None:
        """Read to the end of the stream, so that its maker can finish its digest."""
        self._at = self._end
        for _ in self._pieces:
            pass

    # --- headers -------------------------------------------------------------------------------------------------

    def _is_end(self, block: bytes) -> bool:
        """Tell whether the archive ends here; a block that is no header either is an error."""
        if not block:
            return True
        if block == _ZEROS:
            if self._take(BLOCK) not in (_ZEROS, b""):
                raise TarError("corrupt tar archive: a single block of zeros is followed by data")
            return True
        if not checksum_fits(block):
            raise TarError("corrupt tar header: its checksum is wrong, or this is no tar archive")
        return False

    def _entry(
        self,
        block: bytes,
        kind: bytes,
        name: bytes = b"",
        link: bytes = b"",
        pax: Sequence[tuple[bytes, bytes]] = (),
    ) -> Entry:
        if not name:
            name = block[:100].partition(b"\0")[0]
            if block[345] and block[257:263] == b"ustar\0":
                name = block[345:500].partition(b"\0")[0] + b"/" + name
        about = block[100:124] + block[136:148]
        entry = Entry(name, kind, *(self._seen.get(about) or self._attributes(about)))
        entry.size = number(block[124:136])
        if block[157] or link:
            entry.link = link or block[157:257].partition(b"\0")[0]
        sparse = {}
        if pax or self._global:
            sparse = _apply_pax(entry, [*self._global.items(), *pax])
        if kind in _NO_DATA:
            entry.size = 0
            if kind in _DEVICES:
                entry.major, entry.minor = _device(block)
        size = entry.size
        if not (0 <= size <= _SIZE_LIMIT and 0 <= entry.uid < _ID_LIMIT and 0 <= entry.gid < _ID_LIMIT):
            raise TarError(f"corrupt tar header of {_short(entry.name)}: a size, owner or group is out of range")
        self._left = size
        self._pad = -size % BLOCK
        if kind == b"S":
            self._old_sparse(entry, block)
        elif sparse and kind in REGULAR:
            self._pax_sparse(entry, sparse)
        if pax or self._global:
            _check_names(entry)  # all others end before their first zero byte
        if kind in _OLD_REGULAR and entry.name[-1:] == b"/":
            entry.kind = DIRECTORY  # how tar of Unix version 7 wrote directories
        return entry

    def _attributes(self, about: bytes) -> tuple[int, int, int, int]:
        """Return mode, owner, group and time; neighbours mostly have the same, so that numbers are read once."""
        mtime = clamp(number(about[24:]) * _SECOND)
        found = number(about[:8]) & 0o7777, number(about[8:16]), number(about[16:24]), mtime
        if len(self._seen) >= _SEEN_LIMIT:
            self._seen.clear()
        self._seen[about] = found
        return found

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        entry.real_size = number(block[483:495])
        fields = [block[386 + 24 * n : 410 + 24 * n] for n in range(4)]
        more = block[482]
        while more and len(fields) <= _SPARSE_LIMIT:
            extension = self._block()
            fields += [extension[24 * n : 24 * n + 24] for n in range(21)]
            more = extension[504]
        if more:
            raise TarError(f"sparse file {_short(entry.name)} has more than {_SPARSE_LIMIT} extents")
        pairs = [(number(f[:12]), number(f[12:])) for f in fields if f[0]]
        entry.extents = _checked(entry, pairs)

    def _pax_sparse(self, entry: Entry, sparse: dict[bytes, bytes]) -> None:
        entry.name = sparse.get(b"name", entry.name)
        entry.real_size = decimal(sparse.get(b"realsize", sparse.get(b"size", b"0")))
        if sparse.get(b"major") == b"1":
            numbers = self._sparse_map(entry)
        else:
            numbers = [decimal(n) for n in sparse.get(b"map", b"").split(b",") if n]
        entry.extents = _checked(entry, list(zip(numbers[::2], numbers[1::2], strict=False)))

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Read the map that PAX sparse 1.0 puts before the data: a count, then offset and size, one a line."""
        numbers: list[int] = []
        rest = b""
        wanted = 1
        while len(numbers) < wanted:
            if self._left < BLOCK or len(rest) > BLOCK:
                raise TarError(f"corrupt sparse map of {_short(entry.name)}")
            *lines, rest = (rest + self._block()).split(b"\n")
            self._left -= BLOCK
            if lines and not numbers:
                wanted = 1 + 2 * min(decimal(lines[0]), _SPARSE_LIMIT + 1)
            numbers += [decimal(line) for line in lines[: wanted - len(numbers)]]  # zeros fill the last block
        return numbers[1:]

    def _payload(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_LIMIT:
            raise TarError(f"a tar header of {size} bytes is larger than {_HEADER_LIMIT}")
        payload = self._take(size + -size % BLOCK)
        if size and not payload:
            raise TarError(_TRUNCATED)
        return payload[:size]

    def _block(self) -> bytes:
        block = self._take(BLOCK)
        if not block:
            raise TarError(_TRUNCATED)
        return block

    # --- bytes ---------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        """Return the next `size` bytes; `b""` if the stream ends right before them."""
        at = self._at
        end = at + size
        if end <= self._end:
            self._at = end
            return self._data[at:end]
        parts = [self._data[at:]]
        missing = size - len(parts[0])
        self._at = self._end
        while missing:
            if not self._load(may_end=missing == size):
                return b""
            part = self._data[:missing]
            parts.append(part)
            missing -= len(part)
            self._at = len(part)
        return b"".join(parts)

    def _load(self, *, may_end: bool = False) -> bool:
        """Go on to the next piece; False at an end of the stream that is none too early."""
        piece = next(self._pieces, None)
        if piece is None:
            if may_end:
                return False
            raise TarError(_TRUNCATED)
        self._data, self._view = piece, memoryview(piece)
        self._at, self._end = 0, len(piece)
        return True

    def _skip(self, size: int) -> None:
        at = self._at + size
        while at > self._end:
            at -= self._end
            self._load()
        self._at = at


def _short(name: bytes) -> str:
    """Return a name for a message."""
    return repr(name if len(name) <= 200 else name[:200] + b"...")


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _check_names(entry: Entry) -> None:
    """Refuse zero bytes, which no file system has in names."""
    if b"\0" in entry.name or b"\0" in entry.link or any(b"\0" in key for key in entry.xattrs):
        raise TarError(f"corrupt tar header of {_short(entry.name)}: a name holds a zero byte")


def _device(block: bytes) -> tuple[int, int]:
    major, minor = number(block[329:337]), number(block[337:345])
    if not (0 <= major < _MAJOR_LIMIT and 0 <= minor < _MINOR_LIMIT):
        raise TarError(f"corrupt tar header: no device has the number {major}:{minor}")
    return major, minor


def _checked(entry: Entry, pairs: Extents) -> Extents:
    """Return the extents of a sparse file, having made sure that they ascend and lie inside it."""
    if len(pairs) > _SPARSE_LIMIT:
        raise TarError(f"sparse file {_short(entry.name)} has more than {_SPARSE_LIMIT} extents")
    if not 0 <= entry.real_size <= _SIZE_LIMIT:
        raise TarError(f"corrupt sparse map of {_short(entry.name)}: its size is out of range")
    position = 0
    for offset, size in pairs:
        if offset < position or size < 0 or offset + size > entry.real_size:
            raise TarError(f"corrupt sparse map of {_short(entry.name)}")
        position = offset + size
    return pairs


def _apply_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Let PAX records override the header; return those of a sparse file, `GNU.sparse.` taken off."""
    sparse: dict[bytes, bytes] = {}
    extents = b""
    xattrs: dict[bytes, bytes] = {}
    for key, value in records:
        if key == b"path":
            entry.name = value or entry.name
        elif key == b"linkpath":
            entry.link = value or entry.link
        elif key == b"mtime":
            entry.mtime = nanoseconds(value)
        elif key in (b"size", b"uid", b"gid"):
            setattr(entry, key.decode(), decimal(value))
        elif key.startswith(_XATTR):
            xattrs[key[len(_XATTR) :]] = value
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            extents += value + b","
        elif key.startswith(b"GNU.sparse."):
            sparse[key[11:]] = value
    if xattrs:
        entry.xattrs = xattrs
    if extents:
        sparse.setdefault(b"map", extents)
    return sparse
