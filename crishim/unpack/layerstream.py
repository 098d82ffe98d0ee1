"""From a layer's blob, which may still be on its way, to the bytes of its tar archive, digested and within the limits.

The daemon writes the blob's file and says through a pipe how much of it there is; nothing is copied between the two
processes. It closes the pipe to have the work given up, and so does its death. The archive is known to be the right
one only at its end, so whoever uses the bytes before must be able to throw away what was made of them.

Runs in the extracting child: decompressors are native code that reads what strangers wrote, so they run where there
is nothing but the layer. Out of scope: the blob's own digest (the daemon's).
"""

import hashlib
import os
import select
from collections.abc import Iterator, Mapping
from typing import Any

from crishim.errors import AbortedError, DataLossError, ResourceExhaustedError
from crishim.unpack import decompress

TOTAL = 8  # bytes of each message: how many bytes of the blob there are, little-endian
_MESSAGES = 512


class Growing:
    """A file that another process still writes.

    Args:
        fd: the file.
        progress: a pipe with totals (`TOTAL`), each larger than the one before; its end ends the reading.
        size: how large the file gets.
    """

    def __init__(self, fd: int, progress: int, size: int) -> None:
        self.position = 0
        self._fd = fd
        self._progress = progress
        self._size = size
        self._available = 0
        self._poll = select.poll()
        self._poll.register(progress, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as soon as there are some, `b""` at the end; AbortedError when the pipe ended."""
        while self._poll.poll(None if self.position == self._available < self._size else 0):
            messages = os.read(self._progress, _MESSAGES * TOTAL)
            if not messages:
                raise AbortedError("the unpacking was given up")
            self._available = min(int.from_bytes(messages[-TOTAL:], "little"), self._size)
        data = os.pread(self._fd, min(size, self._available - self.position), self.position)
        self.position += len(data)
        return data


class LayerStream:
    """The bytes of the archive; whatever is needed for them has been imported when this is made.

    Args:
        blob: the packed bytes.
        options: `what` names the layer in errors; `diff_id`; `max_bytes`, `max_ratio` and `ratio_floor` (see
            `images.settings`; 0 or absent: no limit).

    Raises:
        DataLossError: corrupt or truncated, or another archive than the diff id's.
        FailedPreconditionError: packed in a way that layers are not.
        ResourceExhaustedError: beyond the limits.
    """

    def __init__(self, blob: Growing, options: Mapping[str, Any]) -> None:
        self._blob = blob
        self._what = str(options.get("what") or "layer")
        self._diff_id = str(options["diff_id"])
        self._max_bytes = int(options.get("max_bytes") or 0)
        self._max_ratio = int(options.get("max_ratio") or 0)
        self._ratio_floor = int(options.get("ratio_floor") or 0)
        self._digest = hashlib.new(self._diff_id.partition(":")[0])
        self._pieces = decompress.pieces(blob.read, self._what)

    def __iter__(self) -> Iterator[bytes]:
        unpacked = 0
        digest = self._digest
        for piece in self._pieces:
            unpacked += len(piece)
            self._check_size(unpacked)
            digest.update(piece)
            yield piece
        if (found := f"{digest.name}:{digest.hexdigest()}") != self._diff_id:
            raise DataLossError(f"{self._what}: unpacked it has the digest {found}, the image says {self._diff_id}")

    def _check_size(self, unpacked: int) -> None:
        if self._max_bytes and unpacked > self._max_bytes:
            raise ResourceExhaustedError(
                f"{self._what} unpacks to more than {self._max_bytes} bytes (images.max_layer_bytes)"
            )
        if self._max_ratio and unpacked > max(self._ratio_floor, self._max_ratio * max(self._blob.position, 1)):
            raise ResourceExhaustedError(
                f"{self._what} unpacks to more than {self._max_ratio} times its size (images.max_ratio)"
            )
