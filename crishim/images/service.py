"""The image side of one instance: pulls, look-ups, removal, holds, and the collection of what nothing needs.

All methods run in the event loop; blocking work is in threads. Invariants: what a shown image or a holder needs is
never deleted; a pull pins what it uses before it looks for it; lists and look-ups touch no disk. Out of scope: CRI
messages, mounts.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from crishim.clock import monotonic, now
from crishim.errors import (
    CrishimError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from crishim.images import platform, upkeep
from crishim.images.archive.archives import Archives
from crishim.images.assemble import Assembler, Part, visible
from crishim.images.catalog import Catalog
from crishim.images.content import Content
from crishim.images.extractor import Extractor
from crishim.images.flight import Shared
from crishim.images.layers import Layers
from crishim.images.manifest import Descriptor
from crishim.images.model import Credentials, Details, FsUsage, Image, Pruned, Pulled, Pushed, Removed
from crishim.images.progress import Item, Report, reported
from crishim.images.pull import Progress, Pull
from crishim.images.records import ImageRecord, chain_ids
from crishim.images.reference import Reference
from crishim.images.reference import parse as parse_reference
from crishim.images.registry.auth import Login
from crishim.images.registry.client import Repository
from crishim.images.registry.exchange import Authorizers
from crishim.images.registry.mirrors import Mirrors
from crishim.images.settings import ImageSettings
from crishim.log import get_logger
from crishim.observe import Observer
from crishim.paths import Paths
from crishim.store.store import Store

if TYPE_CHECKING:
    from crishim.images.push import Push

log = get_logger("crishim.images")
_SWEEP_SECONDS = 600
Reason = tuple[Reference, tuple[str, ...]]
"""What pulls are shared by: the reference, and who asks for it."""


class Images:
    """Implements `images.model.ImagesManager`.

    Args:
        store: the instance's store.
        paths: its paths.
        settings: the configuration's part on images.
        extractor: runs the extracting child (the engine's client).
        observer: told of pulls and of what was reclaimed.
    """

    def __init__(
        self, store: Store, paths: Paths, settings: ImageSettings, extractor: Extractor, observer: Observer
    ) -> None:
        self._store = store
        self._settings = settings
        self._observer = observer
        self._content = Content(paths.content)
        self._layers = Layers(store, paths.layers)
        self._catalog = Catalog(store, self._layers)
        self._catalog.pin(settings.pinned)
        self._assembler = Assembler(self._content, self._layers, extractor, settings)
        self._authorizers = Authorizers()
        self._mirrors = Mirrors()
        self._platform = platform.host()
        self.archives = Archives(
            self._content,
            self._layers,
            self._catalog,
            self._assembler,
            self._platform,
            settings,
            store.sync,
            self.collect,
            paths.content,
        )
        self._pulls: Shared[tuple[Pulled, Progress]] = Shared()
        self._pull_slots = asyncio.Semaphore(settings.parallel_pulls)
        self._progress: dict[Reason, Progress] = {}
        self._pushes: list[Push] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load everything and reconcile: half-made layers and parts go, lost layers are made again from their blobs."""
        self._content.open(self._settings.part_seconds)
        spools = self.archives.open()
        if spools:
            self._observer.leak_reclaimed("archive", spools)
        self._catalog.open()
        strays = self._layers.open()
        if strays:
            self._observer.leak_reclaimed("layer", strays)
        for record in self._catalog.records():
            if any(self._layers.get(layer.key) is None for layer in record.layers):
                await self._repair(record)
        held = self._catalog.held()
        for record in self._catalog.records():
            if record.removed and record.id not in held:
                self._catalog.remove(record, keep=False)
        blobs = self.collect()
        if blobs:
            self._observer.leak_reclaimed("blob", blobs)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="image parts")

    async def stop(self) -> None:
        """Cancel pulls and wait for the background work."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._pulls.cancel_all()
        await self._assembler.stop()
        self.collect()
        await self._layers.settled()

    async def settled(self) -> None:
        """Wait until deletions and syncs in the background are through."""
        await self._layers.settled()

    def reload(self, settings: ImageSettings) -> None:
        """Take new settings for the pulls to come."""
        if settings.parallel_pulls != self._settings.parallel_pulls:
            self._pull_slots = asyncio.Semaphore(settings.parallel_pulls)
        self._settings = settings
        self._assembler.reload(settings)
        self._catalog.pin(settings.pinned)
        self.archives.reload(settings)

    # --- pulling -------------------------------------------------------------------------------------------------

    async def pull(self, reference: str, credentials: Credentials | None = None) -> str:
        """Pull, or find unchanged by one request, and return the image's id; equal calls share one pull."""
        wanted = parse_reference(reference)
        reason = (wanted, Login(credentials, wanted.host).key)
        pulled, _ = await self._pulls.run(reason, lambda: self._pull(reason, credentials))
        return pulled.id

    async def pull_watched(self, reference: str, credentials: Credentials | None, report: Report) -> Pulled:
        """Pull with progress; shares the pull with equal calls of `pull`."""
        wanted = parse_reference(reference, "image")
        reason = (wanted, Login(credentials, wanted.host).key)

        ended: list[Progress] = []

        async def work() -> Pulled:
            pulled, progress = await self._pulls.run(reason, lambda: self._pull(reason, credentials))
            ended.append(progress)
            return pulled

        def look() -> list[Item]:
            seen = ended or ([self._progress[reason]] if reason in self._progress else [])
            return [item for progress in seen for item in progress.items(self._content, self._assembler)]

        return await reported(work(), look, report)

    async def _pull(self, reason: Reason, credentials: Credentials | None) -> tuple[Pulled, Progress]:
        wanted = reason[0]
        begun = monotonic()
        progress = Progress(self._observer.image_received)
        outcome = "cancelled"
        self._progress[reason] = progress
        try:
            async with self._pull_slots:
                record, digest, cached = await self._resolved(wanted, credentials, progress)
            names = self._names(wanted, digest)
            if not cached or record.removed or any(self._catalog.owner_of(name) != record.id for name in names):
                self._catalog.put(replace(record, removed=False), names)
                await self._store.sync()
            outcome = "cached" if cached else "ok"
        except CrishimError as error:
            outcome = type(error).__name__.removesuffix("Error")
            raise
        else:
            return Pulled(record.id, str(wanted), digest, cached), progress
        finally:
            del self._progress[reason]
            self.collect()
            self._observer.image_pull(outcome=outcome, seconds=monotonic() - begun)

    async def _resolved(
        self, wanted: Reference, credentials: Credentials | None, progress: Progress
    ) -> tuple[ImageRecord, str, bool]:
        """Return the image's record, the digest that the reference stands for, and whether the image was here."""
        repository = Repository(wanted, credentials, self._settings, self._authorizers, self._mirrors)
        pull = Pull(repository, self._platform, self._content, self._assembler, progress)
        target = wanted.target
        try:
            if self._known(wanted):
                digest = await pull.resolve(target)
                found = self._catalog.by_target(digest)
                if found is not None and self._whole(found):
                    return found, digest, True
                target = digest or target
            try:
                record = await pull.run(target)
            except (UnauthenticatedError, PermissionDeniedError):
                if not progress.documents:
                    raise
                # The manifest was granted: it may be another pull's download that was refused.
                record = await pull.run(target)
            return record, record.targets[0], False
        finally:
            repository.close()

    def _known(self, wanted: Reference) -> bool:
        """Tell whether a HEAD is likely to be all that is needed."""
        if wanted.digest:
            return self._catalog.by_target(wanted.digest) is not None
        return self._catalog.owner_of(wanted.repo_tag) is not None

    def _whole(self, record: ImageRecord) -> bool:
        return all(self._layers.get(layer.key) is not None for layer in record.layers)

    def _names(self, wanted: Reference, digest: str) -> list[str]:
        """Return the names that a pull gives: repository@digest and, unless it was by digest alone, the tag."""
        names = [f"{wanted.repository}@{wanted.digest or digest}"]
        if not wanted.digest:
            names.append(wanted.repo_tag)
        elif wanted.tag:
            # The caller says that this tag is this digest; that does not take the tag from another image.
            name = f"{wanted.repository}:{wanted.tag}"
            owner = self._catalog.owner_of(name)
            if owner is None or owner == getattr(self._catalog.by_target(digest), "id", None):
                names.append(name)
        return names

    # --- reading -------------------------------------------------------------------------------------------------

    def find(self, reference: str) -> Image | None:
        """Return the image named by tag, digest reference, id or unique id prefix; None if absent."""
        record = self._catalog.find(reference)
        return self._catalog.view(record) if record else None

    def list(self, reference: str = "") -> list[Image]:
        """Return all images, or the one that `reference` names."""
        if not reference:
            return self._catalog.all()
        found = self.find(reference)
        return [found] if found else []

    def fs_usage(self) -> FsUsage:
        """Return the usage of the image file system: blobs and unpacked layers."""
        return FsUsage(
            mountpoint=self._layers.root,
            used_bytes=self._content.total + self._layers.size,
            inodes_used=self._content.count() + self._layers.inodes,
            timestamp=now(),
        )

    def info(self, image_id: str) -> Mapping[str, str]:
        """Return ImageStatus(verbose)'s info: the chain id, the layers and the image's config as it came."""
        record = self._catalog.find(image_id)
        if record is None:
            raise NotFoundError(f"image {image_id} is not here")
        diff_ids = tuple(layer.diff_id for layer in record.layers)
        chain = chain_ids(diff_ids)
        layers = [
            {"digest": layer.digest, "diffID": layer.diff_id, "size": layer.size, "mediaType": layer.media_type}
            for layer in record.layers
        ]
        document = {
            "chainID": chain[-1] if chain else "",
            "layers": layers,
            "imageSpec": json.loads(self._content.read(record.id)),
        }
        return {"info": json.dumps(document)}

    # --- removing and holding ------------------------------------------------------------------------------------

    async def remove(self, reference: str) -> None:
        """Remove the image with all its names; absent is success. Layers in use go with their last container."""
        record = self._catalog.find(reference)
        if record is None:
            return
        self._catalog.remove(record, keep=record.id in self._catalog.held())
        self.collect()

    def hold(self, image_id: str, owner: str) -> tuple[str, ...]:
        """Pin an image's layers for `owner`; return their absolute paths, bottom first.

        The root of the merged tree has the attributes of the last of them; an upper directory must be given those.

        Raises:
            NotFoundError: the image is gone.
        """
        record = self._catalog.find(image_id)
        if record is None or not self._whole(record):
            raise NotFoundError(f"image {image_id} is not here; pull it")
        self._catalog.hold(owner, record.id)
        return self._paths(record)

    def release(self, owner: str) -> None:
        """Let go of what `owner` pinned; unknown owners are fine."""
        image_id = self._catalog.release(owner)
        record = self._catalog.get(image_id) if image_id else None
        if record is not None and record.removed and record.id not in self._catalog.held():
            self._catalog.remove(record, keep=False)
            self.collect()

    def collect(self) -> int:
        """Delete blobs and layers that no image, holder or pull needs; return how many blobs.

        Layers vanish by a rename and their files are deleted in the background; a blob is one unlink.
        """
        needed = self.archives.pinned()
        for progress in self._progress.values():
            needed |= progress.pins
        for push in self._pushes:
            needed |= push.pins
        for record in self._catalog.records():
            needed |= record.blobs()
            needed.update(layer.key for layer in record.layers)
        for key in self._layers.keys():  # noqa: SIM118  a method that returns a list
            if key not in needed:
                self._layers.remove(key)
        self._assembler.drop_loose(needed.__contains__)
        blobs = [digest for digest in self._content.digests() if digest not in needed]
        for digest in blobs:
            self._content.remove(digest)
        return len(blobs)

    # --- the person's ----------------------------------------------------------------------------------------------

    async def push(self, source: str, destination: str, credentials: Credentials | None, report: Report) -> Pushed:
        """Push an image, named by `source`, to `destination` (empty: `source`), with progress.

        Raises:
            InvalidArgumentError: there is no name to push to, or its digest is another image's.
            NotFoundError: no such image is here.
            FailedPreconditionError, UnauthenticatedError, PermissionDeniedError, UnavailableError: the registry.
        """
        from crishim.images.push import Push
        from crishim.images.registry.target import Target

        record = upkeep.find(self._catalog, source)
        wanted = upkeep.destination(self._catalog, record, source, destination)
        push = Push(record, wanted, self._content, self._catalog, self._observer.image_sent)
        target = Target(wanted, credentials, self._settings, self._authorizers)
        begun = monotonic()
        outcome = "cancelled"
        self._pushes.append(push)
        try:
            pushed = await reported(push.run(target, self._settings.parallel_layers), push.items, report)
            current = self._catalog.get(record.id)
            if current is not None and not current.removed:
                self._catalog.put(current, [f"{wanted.repository}@{pushed.digest}"])
            outcome = "ok"
        except CrishimError as error:
            outcome = type(error).__name__.removesuffix("Error")
            raise
        else:
            return pushed
        finally:
            target.close()
            self._pushes.remove(push)
            self.collect()
            self._observer.image_push(outcome=outcome, seconds=monotonic() - begun)

    async def tag(self, source: str, name: str) -> tuple[str, str]:
        """Give an image a name; return its id and the normalised name.

        Raises:
            InvalidArgumentError: the name has a digest.
            NotFoundError: no such image is here.
        """
        wanted = parse_reference(name, "name")
        if wanted.digest:
            raise InvalidArgumentError("name", f"{name!r} has a digest, which the image has by itself: give a tag")
        record = upkeep.find(self._catalog, source)
        self._catalog.put(record, [wanted.repo_tag])
        await self._store.sync()
        return record.id, wanted.repo_tag

    def untag(self, text: str, *, force: bool) -> Removed:
        """Take one name away, the image with its last one; by id, all of them.

        Raises:
            NotFoundError: no such image is here.
            FailedPreconditionError: it is used or has several names, and it is not forced.
        """
        record = upkeep.find(self._catalog, text)
        names = upkeep.plan_removal(self._catalog, record, text, force=force)
        if len(names) < len(self._catalog.names(record.id)):
            self._catalog.untag(record, names)
            return Removed(names)
        self._catalog.remove(record, keep=record.id in self._catalog.held())
        self.collect()
        return Removed(names, record.id)

    def details(self, pattern: str, *, dangling: bool) -> Sequence[Details]:
        """Return the images that a name, id or pattern of names means (empty: all), the newest first."""
        return upkeep.details(self._catalog, self._layers, pattern, dangling=dangling)

    def prune(self, *, unused: bool, dry_run: bool) -> Pruned:
        """Remove images without a tag, or all, that no container uses."""
        gone = upkeep.unused(self._catalog, tagged=unused)
        removed = tuple(Removed(self._catalog.names(record.id), record.id) for record in gone)
        freed = upkeep.frees(self._catalog, self._content, self._layers, gone)
        if not dry_run:
            for record in gone:
                self._catalog.remove(record, keep=False)
            self.collect()
        return Pruned(removed, freed)

    # --- inside --------------------------------------------------------------------------------------------------

    def _paths(self, record: ImageRecord) -> tuple[str, ...]:
        layers = [found for layer in record.layers if (found := self._layers.get(layer.key)) is not None]
        return tuple(self._layers.path(layer.key) for layer in visible(layers))

    async def _repair(self, record: ImageRecord) -> None:
        """Make an image's lost layers again from its blobs; an image whose blobs are lost too is forgotten."""
        diff_ids = tuple(layer.diff_id for layer in record.layers)
        parts = [
            Part(Descriptor(layer.media_type, layer.digest, layer.size), layer.diff_id, chain_id)
            for layer, chain_id in zip(record.layers, chain_ids(diff_ids), strict=True)
        ]
        lost = [part.blob.digest for part in parts if part.blob.digest not in self._content]
        try:
            if lost:
                raise DataLossError(f"blob {lost[0]} is gone")
            records = await self._assembler.assemble(parts, None, lambda _size: None)
        except CrishimError as error:
            log.warning("an image lost layers and cannot be repaired; it must be pulled again", error=str(error))
            self._catalog.remove(record, keep=False)
            self._observer.leak_reclaimed("image")
            return
        layers = tuple(replace(layer, key=found.key) for layer, found in zip(record.layers, records, strict=True))
        self._catalog.put(replace(record, layers=layers), [])

    async def _sweep(self) -> None:
        """Delete the parts of broken downloads that nobody came back for."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._content.sweep_parts(self._settings.part_seconds, self._assembler.receiving())
