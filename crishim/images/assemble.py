"""The layers of an image: downloaded and unpacked side by side, then settled on each other bottom up.

Each blob is fetched once and each layer unpacked once, however many pulls want them (`Shared` flights), and unpacking
follows the download. A layer that stands on its own is published under its diff id. One that does not waits as a
*loose* directory until the layers below are there, is settled on them and published under its chain id (prefix
`chain:`, because the bottom layer's chain id is its diff id). Invariant: what `assemble` returned is published and
pinned by the caller's pins; nothing else that it made outlives a failure but for loose directories, which `loose`
names for the collector.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crishim.errors import AbortedError, DataLossError
from crishim.images.content import Content, disk_error
from crishim.images.extractor import Extractor
from crishim.images.fetch import BlobFile, Fetch, Origin, Source, StalePartError
from crishim.images.flight import Shared
from crishim.images.layers import Layers
from crishim.images.manifest import Descriptor
from crishim.images.records import LayerRecord
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.settle import mark_opaque, root_differs, settle, stands_alone
from crishim.images.threads import in_thread, through, wait_out
from crishim.images.unpack import Wanted, unpack

_RENAMES = 1000  # parents that are links in the layers below
_ANEW = 8  # times that a blob is fetched from its beginning: once for each mirror that lies


@dataclass(frozen=True, slots=True)
class Part:
    """One layer to get: its blob, its diff id and its chain id."""

    blob: Descriptor
    diff_id: str
    chain_id: str

    @property
    def chain_key(self) -> str:
        """The key of a layer that is right on top of this chain only."""
        return f"chain:{self.chain_id}"


@dataclass(frozen=True, slots=True)
class _Loose:
    path: str
    report: Mapping[str, Any]


class Assembler:
    """Gets layers; one for all pulls of an instance.

    Args:
        content: the blobs.
        layers: the unpacked layers.
        extractor: runs the extracting child.
        settings: limits.
    """

    def __init__(self, content: Content, layers: Layers, extractor: Extractor, settings: ImageSettings) -> None:
        self._content = content
        self._layers = layers
        self._extractor = extractor
        self._settings = settings
        self._fetches: Shared[None] = Shared()
        self._unpacks: Shared[None] = Shared()
        self._settles: Shared[None] = Shared()
        self._live: dict[str, Fetch] = {}
        self._loose: dict[str, _Loose] = {}
        self._begun = asyncio.Condition()
        self._fetch_slots = asyncio.Semaphore(settings.parallel_layers)
        self._unpack_slots = asyncio.Semaphore(settings.parallel_layers)

    def reload(self, settings: ImageSettings) -> None:
        """Take new settings; what is under way keeps its own."""
        if settings.parallel_layers != self._settings.parallel_layers:
            self._fetch_slots = asyncio.Semaphore(settings.parallel_layers)
            self._unpack_slots = asyncio.Semaphore(settings.parallel_layers)
        self._settings = settings

    def receiving(self) -> list[str]:
        """Return the digests of the blobs that are being received."""
        return list(self._live)

    def received(self, digest: str) -> int | None:
        """Return how many bytes of a blob have come; None if it is not being received."""
        fetch = self._live.get(digest)
        return fetch.available if fetch else None

    def present(self, part: Part) -> bool:
        """Tell whether a layer is unpacked, published or not."""
        keys = (part.diff_id, part.chain_key)
        return any(self._layers.get(key) is not None for key in keys) or part.diff_id in self._loose

    def drop_loose(self, pinned: Callable[[str], bool]) -> None:
        """Delete the loose directories whose diff id no pull has pinned."""
        for diff_id in [d for d in self._loose if not pinned(d)]:
            self._layers.discard(self._loose.pop(diff_id).path)

    async def stop(self) -> None:
        """Cancel all work."""
        for flights in (self._settles, self._unpacks, self._fetches):
            await flights.cancel_all()

    async def fetch(self, blob: Descriptor, repository: Origin, received: Callable[[int], None]) -> None:
        """Get one blob into the store, once however many pulls want it; the caller has pinned it."""
        if not self._stored(blob):
            await self._fetches.run(blob.digest, lambda: self._fetch(blob, repository, received))

    async def document(self, blob: Descriptor, repository: Origin, received: Callable[[int], None]) -> None:
        """Get one blob that is not unpacked, and if its bytes are not right, from elsewhere."""
        for _ in range(_ANEW):
            with contextlib.suppress(StalePartError):
                return await self.fetch(blob, repository, received)
        return await self.fetch(blob, repository, received)

    async def assemble(
        self, parts: Sequence[Part], repository: Origin | None, received: Callable[[int], None]
    ) -> list[LayerRecord]:
        """Return the layers' records, bottom first, having fetched and unpacked what was missing.

        Args:
            parts: the layers, bottom first.
            repository: where blobs are to be had; None if all must be here.
            received: told the number of bytes that came over the wire.
        """
        tasks = [asyncio.ensure_future(self._get(part, repository, received)) for part in _distinct(parts)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await wait_out(tasks)
        return await self._stack(parts)

    # --- side by side --------------------------------------------------------------------------------------------

    async def _get(self, part: Part, repository: Origin | None, received: Callable[[int], None]) -> None:
        aborted = False
        for _ in range(_ANEW):
            try:
                return await self._get_once(part, repository, received)
            except StalePartError:
                continue
            except AbortedError:  # another pull's work that this one had joined and that was given up
                if aborted:
                    raise
                aborted = True
        return await self._get_once(part, repository, received)

    async def _get_once(self, part: Part, repository: Origin | None, received: Callable[[int], None]) -> None:
        halves: list[asyncio.Future[None]] = []
        if not self._stored(part.blob) and repository is not None:
            halves.append(asyncio.ensure_future(self.fetch(part.blob, repository, received)))
        if not self.present(part):
            halves.append(asyncio.ensure_future(self._unpacks.run(part.diff_id, lambda: self._unpack(part))))
        await self._all(halves, part.blob.digest)

    async def _all(self, halves: Sequence["asyncio.Future[None]"], digest: str) -> None:
        """Wait for download and unpacking; the first failure ends the other, and the download's tells more."""
        if not halves:
            return
        try:
            _, pending = await asyncio.wait(halves, return_when=asyncio.FIRST_EXCEPTION)
            # An unpacking that only lost its source leaves it to the download to say why; and what it could not read
            # may be a mirror's lie, which the digest tells in the end.
            fetch = self._live.get(digest)
            lost = any(
                isinstance(half.exception(), AbortedError) for half in halves if half.done() and not half.cancelled()
            )
            if pending and (lost or (fetch is not None and fetch.doubtful)):
                await asyncio.wait(pending)
        finally:
            for half in halves:
                half.cancel()
            await wait_out(halves)
        failures = [half.exception() for half in halves if not half.cancelled() and half.exception() is not None]
        for failure in sorted(failures, key=lambda f: isinstance(f, AbortedError)):
            if failure is not None:
                raise failure
        if any(half.cancelled() for half in halves):
            raise AbortedError("the download or the unpacking was cancelled")

    def _stored(self, blob: Descriptor) -> bool:
        """Tell whether a blob is here; DataLossError if it has another size than its descriptor says."""
        if blob.digest not in self._content:
            return False
        size = self._content.size(blob.digest)
        if size != blob.size:
            raise DataLossError(f"blob {blob.digest}: the manifest says {blob.size} bytes, it has {size}")
        return True

    async def _fetch(self, blob: Descriptor, repository: Origin, received: Callable[[int], None]) -> None:
        async with self._fetch_slots:
            if blob.digest in self._content:
                return
            try:
                fetch = Fetch(self._content, blob, repository, self._settings, received)
            except OSError as error:
                raise disk_error(error, f"storing blob {blob.digest}") from None
            self._live[blob.digest] = fetch
            await self._tell()
            running = asyncio.ensure_future(in_thread("fetch", fetch.run))
            try:
                await asyncio.shield(running)
                self._content.note(blob.digest, blob.size)
            except asyncio.CancelledError:
                fetch.cancel.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await wait_out([running])
                if running.exception() is None:
                    self._content.note(blob.digest, blob.size)
                raise
            finally:
                del self._live[blob.digest]
                fetch.close()
                await self._tell()

    async def _unpack(self, part: Part) -> None:
        """Unpack a layer by itself and publish it, or keep it as loose."""
        made = _Loose(*await self._extract(part, {}))
        with self._discarding(lambda: made.path, part):
            if stands_alone(made.report):
                await through("settle", lambda: mark_opaque(made.path, made.report))
                self._layers.publish(made.path, part.diff_id, part.diff_id, made.report)
            else:
                self._loose[part.diff_id] = made

    @contextlib.contextmanager
    def _discarding(self, path: Callable[[], str], part: Part) -> Iterator[None]:
        """Delete the directory `path()` if what is done with it fails, and say what a failure of the disk means."""
        try:
            yield
        except OSError as error:
            self._layers.discard(path())
            raise disk_error(error, f"layer {part.diff_id}") from None
        except BaseException:
            self._layers.discard(path())
            raise

    async def _extract(self, part: Part, renames: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
        """Unpack a blob, which is here or on its way, into a new directory."""
        cancel = Cancel()
        while True:
            await self._wait_for(part.blob.digest)
            async with self._unpack_slots:
                source = self._source(part.blob.digest, cancel)
                if source is None:
                    continue  # the download failed while this waited for a slot
                try:
                    path = self._layers.new_directory()
                except BaseException:
                    source.close()
                    raise
                try:
                    # Once there are layers for all CPUs a second thread only costs time.
                    wanted = Wanted(part.diff_id, renames, ahead=len(self._unpacks) < len(os.sched_getaffinity(0)))
                    report = await unpack(source, wanted, path, self._extractor, self._settings, cancel)
                except BaseException:
                    self._layers.discard(path)
                    raise
                return path, report

    def _source(self, digest: str, cancel: Cancel) -> Source | None:
        if digest in self._content:
            return BlobFile(self._content.path(digest), cancel)
        fetch = self._live.get(digest)
        return fetch.reader(cancel) if fetch else None

    async def _wait_for(self, digest: str) -> None:
        async with self._begun:
            await self._begun.wait_for(lambda: digest in self._live or digest in self._content)

    async def _tell(self) -> None:
        async with self._begun:
            self._begun.notify_all()

    # --- bottom up -----------------------------------------------------------------------------------------------

    async def _stack(self, parts: Sequence[Part]) -> list[LayerRecord]:
        below: list[LayerRecord] = []
        for part in parts:
            below.append(await self._place(part, tuple(below)))
        return below

    async def _place(self, part: Part, below: tuple[LayerRecord, ...]) -> LayerRecord:
        """Return the record of a layer that is right on top of those below."""
        paths = [self._layers.path(record.key) for record in visible(below)]
        alone = self._layers.get(part.diff_id)
        if alone is not None and (alone.lists_root or not paths or not root_differs(paths[-1])):
            return alone
        if self._layers.get(part.chain_key) is None:
            await self._settles.run(part.chain_key, lambda: self._settle(part, paths))
        record = self._layers.get(part.chain_key)
        if record is None:
            raise AbortedError(f"layer {part.diff_id} was removed while it was being made")
        return record

    async def _settle(self, part: Part, paths: list[str]) -> None:
        made = self._loose.pop(part.diff_id, None) or _Loose(*await self._extract(part, {}))
        renames: dict[str, str] = {}
        with self._discarding(lambda: made.path, part):
            while True:
                current = made
                more, size, inodes = await through("settle", lambda: settle(current.path, current.report, paths))  # noqa: B023  awaited
                if not more:
                    break
                _check_rounds(renames, more, part)
                renames |= more
                self._layers.discard(made.path)
                made = _Loose(*await self._extract(part, renames))
            await through("settle", lambda: mark_opaque(made.path, made.report))
            whole = {**made.report, "bytes": made.report["bytes"] + size, "inodes": made.report["inodes"] + inodes}
            self._layers.publish(made.path, part.chain_key, part.diff_id, whole)


def _check_rounds(renames: Mapping[str, str], more: Mapping[str, str], part: Part) -> None:
    """Each round must find new links; else the layers below lead the layer in circles."""
    if len(renames) > _RENAMES or not more.keys() - renames.keys():
        raise DataLossError(f"layer {part.diff_id}: links of the layers below lead on and on")


def visible(records: Sequence[LayerRecord]) -> Sequence[LayerRecord]:
    """Return the layers that make the root, bottom first: what can be seen of those given.

    overlayfs does not heed the opaque mark of a layer's root, so what such a layer hides is just not mounted. Nor does
    it take a directory twice (ELOOP). A layer that an image lists again counts where it comes last: whatever it holds,
    whiteouts included, lies there over all that is between, and its earlier places add nothing to that.
    """
    top_down: dict[str, LayerRecord] = {}
    for record in reversed(records):
        top_down.setdefault(record.key, record)
        if record.hides_all:
            break
    return list(reversed(top_down.values()))


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """Return each layer once: images repeat the empty layer."""
    return list({(part.blob.digest, part.diff_id): part for part in parts}.values())
