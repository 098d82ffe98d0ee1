"""One layer from its blob to a directory, while the blob is still coming.

A thread follows the download and tells the extracting child how much of the blob's file there is; the child reads it,
decompresses, digests and extracts (`unpack.extract`), and gives up when the pipe through which it is told
ends. Invariant: the report is returned only if blob and archive had their digests and the child was content; the
directory is the caller's to remove otherwise.
"""

import asyncio
import contextlib
import errno
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crishim import errors
from crishim.errors import AbortedError, CrishimError, DataLossError, InternalError
from crishim.images.content import disk_error
from crishim.images.extractor import Extractor
from crishim.images.fetch import Source
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.threads import in_thread, wait_out
from crishim.unpack.layerstream import TOTAL

_ARCHIVES_FAULT = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
)
"""What no file system can do: names too long, links in circles, empty link targets."""
_REFUSALS = {
    kind.__name__: kind
    for kind in (
        errors.AbortedError,
        errors.DataLossError,
        errors.FailedPreconditionError,
        errors.ResourceExhaustedError,
    )
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
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        dest_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, dest_fd)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, read_fd)
        pipe = stack.enter_context(contextlib.ExitStack())
        pipe.callback(os.close, write_fd)

        async def extract() -> Mapping[str, Any]:
            report: Mapping[str, Any] = {}
            try:
                report = await extractor.extract((source.fileno(), read_fd, dest_fd), options)
            finally:
                teller.child_gone = True
                if not report.get("ok"):
                    cancel.set()  # the rest of the download is not waited for
            return report

        def end_early(told: "asyncio.Future[None]") -> None:
            if cancel.cancelled or told.exception() is not None:
                pipe.close()  # the child stops where it is

        told = asyncio.ensure_future(in_thread("unpack", lambda: teller.run(write_fd)))
        told.add_done_callback(end_early)
        extracted = asyncio.ensure_future(extract())
        both: list[asyncio.Future[Any]] = [told, extracted]
        try:
            await asyncio.wait(both)
        except asyncio.CancelledError:
            cancel.set()
            if told.done():
                pipe.close()
            await wait_out(both)
            raise
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
