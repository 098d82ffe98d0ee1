"""One layer from packed bytes to a directory: decompress, hash and extract as one stream.

A thread reads, decompresses, hashes and writes tar into a pipe; the extracting child reads the pipe. Limits on size
and ratio are kept by the thread, before the bytes reach the child. Invariant: the report is returned only if the
stream had the diff id and the child was content; the directory is the caller's to remove otherwise.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import select
from collections.abc import Mapping
from typing import Any

from crishim.errors import AbortedError, CrishimError, DataLossError, InternalError, ResourceExhaustedError
from crishim.images.content import disk_error
from crishim.images.decompress import pieces
from crishim.images.extractor import Extractor
from crishim.images.fetch import Source
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.threads import in_thread, wait_out

_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031
_ARCHIVES_FAULT = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
)
"""What no file system can do: names too long, links in circles, empty link targets."""
_SENTENCE = 400  # characters of what the child says
_LOOK = 200  # milliseconds between looks at whether the child still lives, while its pipe is full


class _Gone(Exception):  # noqa: N818  no error: a signal between the two halves
    """The child does not read any more; its report says why."""


class _Feeder:
    """The thread's half."""

    def __init__(self, source: Source, diff_id: str, what: str, settings: ImageSettings, cancel: Cancel) -> None:
        self.child_gone = False
        self._source = source
        self._diff_id = diff_id
        self._what = what
        self._settings = settings
        self._cancel = cancel
        self._packed = 0

    def run(self, fd: int) -> None:
        """Feed the pipe `fd` (non-blocking) until the end and check the diff id."""
        digest = hashlib.new(self._diff_id.partition(":")[0])
        unpacked = 0
        for piece in pieces(self._read, self._what):
            unpacked += len(piece)
            self._check_size(unpacked)
            digest.update(piece)
            self._write(fd, memoryview(piece))
        found = f"{digest.name}:{digest.hexdigest()}"
        if found != self._diff_id:
            raise DataLossError(f"{self._what}: unpacked it has the digest {found}, the image says {self._diff_id}")

    def _read(self, size: int) -> bytes:
        if self.child_gone:
            raise _Gone
        data = self._source.read(size)
        self._packed += len(data)
        return data

    def _check_size(self, unpacked: int) -> None:
        limits = self._settings
        if unpacked > limits.max_layer_bytes:
            raise ResourceExhaustedError(
                f"{self._what} unpacks to more than {limits.max_layer_bytes} bytes (images.max_layer_bytes)"
            )
        if unpacked > limits.ratio_floor_bytes and unpacked > limits.max_ratio * max(self._packed, 1):
            raise ResourceExhaustedError(
                f"{self._what} unpacks to more than {limits.max_ratio} times its size (images.max_ratio)"
            )

    def _write(self, fd: int, view: memoryview) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        while view:
            if self._cancel.cancelled:
                raise AbortedError(f"{self._what}: the unpacking was cancelled")
            if self.child_gone:
                raise _Gone
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                poll.poll(_LOOK)
            except BrokenPipeError:
                raise _Gone from None


async def unpack(
    source: Source,
    diff_id: str,
    directory: str,
    options: Mapping[str, Any],
    extractor: Extractor,
    settings: ImageSettings,
    cancel: Cancel,
) -> Mapping[str, Any]:
    """Unpack a layer into the empty `directory`; return the child's report (see `extract.run`).

    `source` is closed in any case. When this returns or raises, no child and no thread uses the directory any more.

    Raises:
        DataLossError: corrupt data, wrong diff id, no tar archive.
        ResourceExhaustedError: too large, or the disk is full.
        AbortedError: cancelled, or the download that the source follows failed.
    """
    what = f"layer {diff_id}"
    feeder = _Feeder(source, diff_id, what, settings, cancel)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    dest_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # over the user's pipe quota the pipe just stays small
        fcntl.fcntl(write_fd, _F_SETPIPE_SZ, _PIPE)
    os.set_blocking(write_fd, False)

    def feed() -> None:
        try:
            feeder.run(write_fd)
        finally:
            os.close(write_fd)
            source.close()

    async def extract() -> Mapping[str, Any]:
        try:
            return await extractor.extract(read_fd, dest_fd, {"max_entries": settings.max_entries, **options})
        finally:
            feeder.child_gone = True
            os.close(read_fd)
            os.close(dest_fd)

    both = [asyncio.ensure_future(in_thread("unpack", feed)), asyncio.ensure_future(extract())]
    try:
        await asyncio.wait(both)
    except asyncio.CancelledError:
        cancel.set()
        await wait_out(both)
        raise
    fed, extracted = both
    return _outcome(fed.exception(), extracted, what)


def _outcome(fault: BaseException | None, extracted: "asyncio.Future[Any]", what: str) -> Mapping[str, Any]:
    """Return the report, or raise the error that came first in the stream."""
    if fault is not None and not isinstance(fault, _Gone):
        extracted.exception()
        if isinstance(fault, CrishimError):
            raise fault
        raise InternalError(f"{what}: {type(fault).__name__}: {fault}") from fault
    report: Mapping[str, Any] = extracted.result()
    if report.get("ok"):
        if fault is not None:
            raise InternalError(f"{what}: the extracting child ended before its stream")
        return report
    # Names in it are the image's: any length, any bytes.
    said = str(report.get("error") or "no report")
    sentence = "".join(c if c.isprintable() else "?" for c in said[:_SENTENCE])
    if report.get("kind") == "tar":
        raise DataLossError(f"{what}: {sentence}")
    if report.get("kind") == "os":
        number = int(report.get("errno") or 0)
        if number in _ARCHIVES_FAULT:
            raise DataLossError(f"{what}: {sentence}")
        raise disk_error(OSError(number, sentence), what)
    raise InternalError(f"{what}: {sentence}")
