"""Images from and to files: load, save and import, over the same store and the same pipeline as pulls.

What comes in is spooled, its blobs are published and pinned, and then it is pulled from the archive as if that were a
registry: digests, diff ids, platforms and layers are checked where a pull checks them. Invariants: an archive gives
all of its images or none; whatever ends the work, nothing of it is left but what an image needs. Runs in the event
loop; blocking work is in threads.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from crishim.errors import InvalidArgumentError
from crishim.images import upkeep
from crishim.images.archive import contents, rootfs
from crishim.images.archive.api import Form, Loaded, Order
from crishim.images.archive.contents import ArchiveOrigin, Contents, Found
from crishim.images.archive.inlet import Inlet
from crishim.images.archive.save import Saved, check_blobs, write
from crishim.images.archive.spool import Member, Spool, Spools
from crishim.images.assemble import Assembler
from crishim.images.catalog import Catalog
from crishim.images.content import Content
from crishim.images.layers import Layers
from crishim.images.platform import Platform
from crishim.images.progress import Item, Report, State, reported
from crishim.images.pull import Progress, Pull
from crishim.images.records import ImageRecord
from crishim.images.reference import Reference
from crishim.images.reference import parse as parse_reference
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.threads import in_thread, through, wait_out

T = TypeVar("T")
_ARCHIVE = "the archive"
_TARBALL = "the tarball"


@dataclass(slots=True)
class _Work:
    """One load, save or import under way: what it has pinned, and how far it is."""

    what: str = ""
    pins: set[str] = field(default_factory=set)
    pulls: list[Progress] = field(default_factory=list)
    received: int = 0
    state: State = State.WAITING

    def count(self, size: int) -> None:
        """Add received bytes; called from one thread."""
        self.received += size

    def pinned(self) -> set[str]:
        """Return what must not be collected."""
        return self.pins.union(*(progress.pins for progress in self.pulls))


class Archives:
    """Loads, saves and imports images of one instance; implements `api.ArchivesApi`.

    Args:
        content: its blobs.
        layers: its unpacked layers.
        catalog: its images.
        assembler: unpacks layers.
        platform: this machine's.
        settings: limits.
        sync: makes what the catalog has durable.
        collect: deletes what nothing pins any more.
        root: the content directory, below which archives are spooled.
    """

    def __init__(
        self,
        content: Content,
        layers: Layers,
        catalog: Catalog,
        assembler: Assembler,
        platform: Platform,
        settings: ImageSettings,
        sync: Callable[[], Awaitable[None]],
        collect: Callable[[], object],
        root: str,
    ) -> None:
        self._content = content
        self._layers = layers
        self._catalog = catalog
        self._assembler = assembler
        self._platform = platform
        self._settings = settings
        self._sync = sync
        self._collect = collect
        self._spools = Spools(root)
        self._works: list[_Work] = []

    def open(self) -> int:
        """Remove what a killed daemon left of archives that came in; return how many there were."""
        return self._spools.open()

    def reload(self, settings: ImageSettings) -> None:
        """Take new settings; what is under way keeps its own."""
        self._settings = settings

    def pinned(self) -> set[str]:
        """Return the digests and keys that must not be collected."""
        return set[str]().union(*(work.pinned() for work in self._works))

    async def load(self, chunks: AsyncIterator[bytes], name: str, report: Report) -> tuple[Loaded, ...]:
        """Take in all images of an archive, with the names that it gives them.

        Args:
            chunks: the archive's bytes: a docker-archive or an OCI layout in a tar, plain or packed.
            name: name for the image that the archive gives none; empty: it stays without.
            report: takes the progress.

        Raises:
            InvalidArgumentError: the name is wrong, or there is not one image for it.
            DataLossError, NotFoundError, UnimplementedError, ResourceExhaustedError: the archive.
        """
        given = self._given(name)
        with self._working(_ARCHIVE) as work:
            return await reported(self._load(chunks, given, work), lambda: self._items(work), report)

    async def import_image(self, chunks: AsyncIterator[bytes], order: Order, report: Report) -> tuple[str, str]:
        """Make an image of one layer from a root file system's tarball; return its id and its normalised name.

        Args:
            chunks: the tarball's bytes, plain or packed.
            order: name and config of the image.
            report: takes the progress.
        """
        given = self._given(order.name)
        plan = rootfs.plan(order, self._platform)
        with self._working(_TARBALL) as work:
            return await reported(self._import(chunks, plan, given, work), lambda: self._items(work), report)

    async def save(self, references: Sequence[str], form: Form) -> AsyncGenerator[bytes, None]:
        """Give images as one archive, in pieces of about 1 MiB; those asked for by a tag keep it.

        The images are pinned until the generator is closed.
        """
        images = self._picked(references)
        with self._working(_ARCHIVE) as work:
            for image in images:
                work.pins |= image.record.blobs()
            check_blobs(images, self._content)
            pieces = write(images, form, self._content)
            while piece := await through("save", lambda: next(pieces, b"")):
                yield piece

    # --- in ------------------------------------------------------------------------------------------------------

    async def _load(self, chunks: AsyncIterator[bytes], given: Reference | None, work: _Work) -> tuple[Loaded, ...]:
        settings = self._settings
        cancel = Cancel()
        inlet = Inlet(chunks, cancel, work.count)
        async with self._spools.new() as spool:
            work.state = State.TRANSFERRING
            await _until_cancelled(lambda: spool.receive(inlet.read, settings, _ARCHIVE), cancel)
            work.state = State.DONE
            found = await through("load", lambda: contents.read(spool, self._platform, _ARCHIVE))
            await self._publish(spool, found.members, work)
        pulled = [await self._pulled(found, image.target, self._platform, work) for image in found.images]
        # From here to `sync` nothing else runs: what is here now is what the archive's images are compared with.
        records = [self._best(record, found) for record in pulled]
        names = [self._names(found, *pair) for pair in zip(found.images, records, strict=True)]
        _give(given, [tags for tags, _ in names])
        for record, (tags, digests) in zip(records, names, strict=True):
            self._catalog.put(replace(record, removed=False), [*tags, *digests])
        await self._sync()
        return tuple(Loaded(record.id, tuple(tags)) for record, (tags, _) in zip(records, names, strict=True))

    async def _import(
        self, chunks: AsyncIterator[bytes], plan: rootfs.Plan, given: Reference | None, work: _Work
    ) -> tuple[str, str]:
        settings = self._settings
        cancel = Cancel()
        inlet = Inlet(chunks, cancel, work.count)
        async with self._spools.new() as spool:
            work.state = State.TRANSFERRING
            found = await _until_cancelled(lambda: rootfs.receive(spool, inlet.read, plan, settings, _TARBALL), cancel)
            work.state = State.DONE
            await self._publish(spool, found.members, work)
        record = await self._pulled(found, found.images[0].target, plan.platform, work)
        name = given.repo_tag if given else ""
        self._catalog.put(replace(self._best(record, found), removed=False), [name] if name else [])
        await self._sync()
        return record.id, name

    async def _publish(self, spool: Spool, members: Sequence[Member], work: _Work) -> None:
        """Make members blobs; those that became blobs are known also if the next one fails, so they are collected."""
        work.pins.update(member.digest for member in members)
        published: list[Member] = []
        try:
            await through("publish", lambda: spool.publish(members, self._content, published))
        finally:
            for member in published:
                self._content.note(member.digest, member.size)

    async def _pulled(self, found: Contents, target: str, platform: Platform, work: _Work) -> ImageRecord:
        """Return the record of one image of those whose blobs are published."""
        origin = ArchiveOrigin(work.what, self._content, found.documents)
        progress = Progress(lambda _size: None)
        work.pulls.append(progress)
        return await Pull(origin, platform, self._content, self._assembler, progress).run(target)

    def _best(self, record: ImageRecord, found: Contents) -> ImageRecord:
        """Return the record that the image has already, if it is whole and its manifest is not just one of ours."""
        known = self._catalog.get(record.id)
        if known is None or any(digest not in self._content for digest in known.blobs()):
            return record
        if any(self._layers.get(layer.key) is None for layer in known.layers):
            return record
        named = {name.partition("@")[2] for name in self._catalog.names(known.id)}
        return known if not found.layout or not named.isdisjoint(known.targets) else record

    def _names(self, found: Contents, image: Found, record: ImageRecord) -> tuple[list[str], list[str]]:
        """Return the tags and digest references that an image gets."""
        references = list(dict.fromkeys((*image.names, *found.extra.get(record.id, ()))))
        tags = [f"{reference.repository}:{reference.tag}" for reference in references if reference.tag]
        if not (found.layout and image.target in record.targets):
            return tags, []  # the manifest is one of ours, which no registry knows
        return tags, list(dict.fromkeys(f"{reference.repository}@{image.target}" for reference in references))

    def _given(self, name: str) -> Reference | None:
        if not name:
            return None
        given = parse_reference(name, "options.name")
        if given.digest:
            raise InvalidArgumentError("options.name", f"{name!r} has a digest; an image is named by a tag")
        return given

    def _items(self, work: _Work) -> list[Item]:
        items = [item for progress in work.pulls for item in progress.items(self._content, self._assembler)]
        archive = Item("archive", "archive", work.state, work.received)
        return [archive, *{item.id: item for item in items}.values()]

    @contextmanager
    def _working(self, what: str) -> Iterator[_Work]:
        work = _Work(what)
        self._works.append(work)
        try:
            yield work
        finally:
            self._works.remove(work)
            self._collect()

    # --- out -----------------------------------------------------------------------------------------------------

    def _picked(self, references: Sequence[str]) -> list[Saved]:
        if not references:
            raise InvalidArgumentError("images", "is empty; name at least one image")
        tags: dict[str, set[str]] = {}
        for text in references:
            record = upkeep.find(self._catalog, text)
            tags.setdefault(record.id, set()).update(self._tag(text, record))
        records = [(self._catalog.get(image_id), kept) for image_id, kept in tags.items()]
        return [Saved(record, tuple(sorted(kept))) for record, kept in records if record is not None]

    def _tag(self, text: str, record: ImageRecord) -> set[str]:
        """Return the tag by which an image was asked for, if it was by one."""
        try:
            reference = parse_reference(text)
        except InvalidArgumentError:
            return set()
        name = f"{reference.repository}:{reference.tag}"
        return {name} if self._catalog.owner_of(name) == record.id else set()


def _give(given: Reference | None, tags: Sequence[list[str]]) -> None:
    """Give the caller's name to the image that has none."""
    if given is None:
        return
    nameless = [names for names in tags if not names]
    if len(nameless) != 1:
        raise InvalidArgumentError(
            "options.name", f"the archive has {len(nameless)} images without a name; a name fits one"
        )
    nameless[0].append(given.repo_tag)


async def _until_cancelled(work: Callable[[], T], cancel: Cancel) -> T:
    """Run `work` in a thread; a cancellation ends it and is raised when it has ended."""
    running = asyncio.ensure_future(in_thread("archive", work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancel.set()
        await wait_out([running])
        if not running.cancelled():
            running.exception()
        raise
