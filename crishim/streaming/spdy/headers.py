"""Blocks of names and values as SPDY/3 has them in SYN_STREAM, SYN_REPLY and HEADERS: counted strings under zlib.

All blocks of one direction are one zlib stream that begins with a dictionary known to both sides; each block ends with
a sync flush. So every block has to be read, also one of a frame that is refused, and one that cannot be read ends the
connection. Source: draft-mbelshe-httpbis-spdy-00, section 2.6.10.
"""

import struct
import zlib
from collections.abc import Mapping

MAX_BLOCK = 64 * 1024
"""Bytes of a block when it is unpacked; clients of Kubernetes send three short headers."""

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow"
    " authorization cache-control connection content-base content-encoding content-language content-length"
    " content-location content-md5 content-range content-type date etag expect expires from host if-match"
    " if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma"
    " proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade"
    " user-agent vary via warning www-authenticate method get status"
)
_MORE = ("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin")
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
_COUNT = struct.Struct(">I")


def _counted(text: bytes) -> bytes:
    return _COUNT.pack(len(text)) + text


DICTIONARY = b"".join(_counted(word.encode()) for word in (*_WORDS.split(), *_MORE)) + _TAIL.encode()


class SpdyError(Exception):
    """The peer does not speak SPDY/3: the connection is out of step and has to end."""


class Packer:
    """Blocks of one direction, to be sent in the order in which they were packed."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def pack(self, headers: Mapping[str, str]) -> bytes:
        """Return a block; names in lower case."""
        pairs = b"".join(_counted(name.encode()) + _counted(value.encode()) for name, value in headers.items())
        return self._deflate.compress(_COUNT.pack(len(headers)) + pairs) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class Unpacker:
    """Blocks of the other direction, in the order in which they came."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def unpack(self, block: bytes) -> dict[str, str]:
        """Return the headers of a block; names in lower case, several values of a name apart by NUL.

        Raises:
            SpdyError: it is no block, or unpacks to more than MAX_BLOCK.
        """
        try:
            plain = self._inflate.decompress(block, MAX_BLOCK)
        except zlib.error as error:
            raise SpdyError(f"a block of headers cannot be unpacked: {error}") from None
        if self._inflate.unconsumed_tail or self._inflate.eof:
            raise SpdyError(f"a block of headers is longer than {MAX_BLOCK} bytes, or the last")
        texts = _texts(plain)
        return {name.lower(): value for name, value in zip(texts[::2], texts[1::2], strict=True)}


def _texts(plain: bytes) -> list[str]:
    if len(plain) < _COUNT.size:
        raise SpdyError("a block of headers is cut off")
    left = 2 * _COUNT.unpack_from(plain)[0]
    at = _COUNT.size
    found = []
    while left:
        if len(plain) - at < _COUNT.size:
            raise SpdyError("a block of headers is cut off")
        size = _COUNT.unpack_from(plain, at)[0]
        at += _COUNT.size
        if size > len(plain) - at:
            raise SpdyError("a block of headers is cut off")
        found.append(plain[at : at + size].decode("utf-8", "replace"))
        at += size
        left -= 1
    if at != len(plain):
        raise SpdyError("a block of headers holds more than its headers")
    return found
