"""One layer from its blob to a directory, while the blob is still coming.

A thread follows the download and tells the extracting child how much of the blob's file there is; the child reads it,
decompresses, digests and extracts (`engine.execute.extract`). Invariant: the report is returned only if blob and
archive had their digests and the child was content; the directory is the caller's to remove otherwise.
"""

import asyncio
import errno
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crishim import errors
from crishim.engine.execute.layerstream import TOTAL
from crishim.errors import AbortedError, CrishimError, DataLossError, InternalError
from crishim.images.content import disk_error
from crishim.images.extractor import Extractor
from crishim.images.fetch import Source
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.threads import in_thread, wait_out

_ARCHIVES_FAULT = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
)
"""What no file system can do: names too long, links in circles, empty link targets."""
_REFUSALS = {
    kind.__name__: kind
    for kind in (errors.DataLossError, errors.FailedPreconditionError, errors.ResourceExhaustedError)
}
"""What the child may say in so many words."""
_SENTENCE = 500  # characters of what the child says
_LOOK = 200  # milliseconds between looks at whether the child still lives, while its pipe is full


class _Gone(Exception):  # noqa: N818  no error: a signal between the two halves
    """The child does not read any more; its report says why."""


class _Teller:
    """The thread's half."""

    def __init__(self, source: Source, what: str, cancel: Cancel) -> None:
        self.child_gone = False
        self._source = source
        self._what = what
        self._cancel = cancel

    def run(self, fd: int) -> None:
        """Write totals into the pipe `fd` (non-blocking) until all is there, and wait until it is verified."""
        told = 0
        try:
            while told < self._source.size:
                told = self._source.wait(told)
                self._write(fd, told.to_bytes(TOTAL, "little"))
            self._source.wait(told)
        except AbortedError:
            if self.child_gone:
                raise _Gone from None
            raise

    def _write(self, fd: int, message: bytes) -> None:
        """Write a message whole (it is shorter than PIPE_BUF)."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        while True:
            if self._cancel.cancelled:
                raise AbortedError(f"{self._what}: the unpacking was cancelled")
            if self.child_gone:
                raise _Gone
            try:
                os.write(fd, message)
            except BlockingIOError:
                poll.poll(_LOOK)
            except BrokenPipeError:
                raise _Gone from None
            else:
                return


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the layer must be.

    Attributes:
        diff_id: digest of the archive.
        renames: parents that are links in the layers below, and where they lead (see `layerwriter.LayerWriter`).
        ahead: whether decompressing and extracting are worth a CPU each.
    """

    diff_id: str
    renames: Mapping[str, str]
    ahead: bool


async def unpack(
    source: Source,
    wanted: Wanted,
    directory: str,
    extractor: Extractor,
    settings: ImageSettings,
    cancel: Cancel,
) -> Mapping[str, Any]:
    """Unpack a layer into the empty `directory`; return the child's report (see `extract.run`).

    `source` is closed in any case. When this returns or raises, no child and no thread uses the directory any more.

    Raises:
        DataLossError: corrupt data, wrong diff id, no tar archive.
        FailedPreconditionError: packed in a way that layers are not.
        ResourceExhaustedError: too large, or the disk is full.
        AbortedError: cancelled, or the download that the source follows failed.
    """
    what = f"layer {wanted.diff_id}"
    options = {
        "what": what,
        "diff_id": wanted.diff_id,
        "ahead": wanted.ahead,
        "size": source.size,
        "max_bytes": settings.max_layer_bytes,
        "max_ratio": settings.max_ratio,
        "ratio_floor": settings.ratio_floor_bytes,
        "max_entries": settings.max_entries,
        "renames": dict(wanted.renames),
    }
    teller = _Teller(source, what, cancel)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    dest_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.set_blocking(write_fd, False)

    def tell() -> None:
        try:
            teller.run(write_fd)
        finally:
            os.close(write_fd)

    async def extract() -> Mapping[str, Any]:
        report: Mapping[str, Any] = {}
        try:
            report = await extractor.extract((source.fileno(), read_fd, dest_fd), options)
        finally:
            teller.child_gone = True
            if not report.get("ok"):
                cancel.set()  # the rest of the download is not waited for
            os.close(read_fd)
            os.close(dest_fd)
        return report

    both = [asyncio.ensure_future(in_thread("unpack", tell)), asyncio.ensure_future(extract())]
    try:
        await asyncio.wait(both)
    except asyncio.CancelledError:
        cancel.set()
        await wait_out(both)
        raise
    finally:
        source.close()
    told, extracted = both
    return _outcome(told.exception(), extracted, what)


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
    kind = str(report.get("kind"))
    if kind in _REFUSALS:
        raise _REFUSALS[kind](sentence)
    if kind == "tar":
        raise DataLossError(f"{what}: {sentence}")
    if kind == "os":
        number = int(report.get("errno") or 0)
        if number in _ARCHIVES_FAULT:
            raise DataLossError(f"{what}: {sentence}")
        raise disk_error(OSError(number, sentence), what)
    raise InternalError(f"{what}: {sentence}")
