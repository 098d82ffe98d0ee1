"""One pull: from a reference to a record with all its layers, in as few requests as possible.

A tag that is known costs one HEAD; an image that is not, one GET of each manifest, the config and the missing blobs.
Out of scope: names, the store, sharing between callers (`service`). Invariant: every blob and layer that the result
needs is in `pins` from before it is looked for until the caller has stored the record.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from crishim.errors import DataLossError, NotFoundError
from crishim.images.assemble import Assembler, Part
from crishim.images.content import Content
from crishim.images.fetch import Origin
from crishim.images.manifest import (
    ConfigFile,
    Descriptor,
    Index,
    Manifest,
    choose,
    no_platform,
    parse,
    parse_config,
)
from crishim.images.platform import Platform, rank
from crishim.images.progress import Item, State
from crishim.images.records import ImageLayer, ImageRecord, chain_ids
from crishim.images.registry.transport import Cancel
from crishim.images.threads import in_thread, through, wait_out

T = TypeVar("T")
_NESTED = 4  # indexes within indexes
_CANDIDATES = 16  # manifests without a platform that are looked into
_DOCUMENTS = 64  # manifests and indexes that one pull asks for in all


@dataclass(slots=True)
class Progress:
    """What one pull has pinned, and how far it is.

    Attributes:
        pins: digests of blobs and keys of layers that must not be collected.
        observe: told the bytes of blobs that came over the wire, piece by piece, from threads.
        documents: small blobs by digest, to be stored.
        parts: the layers, once they are known.
        had: digests of those that were here before.
    """

    observe: Callable[[int], None]
    pins: set[str] = field(default_factory=set)
    documents: dict[str, bytes] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    had: frozenset[str] = frozenset()

    def items(self, content: Content, assembler: Assembler) -> list[Item]:
        """Return how far each layer is."""
        return [Item(part.blob.digest, "layer", *self._state(part, content, assembler)) for part in self.parts]

    def _state(self, part: Part, content: Content, assembler: Assembler) -> tuple[State, int, int]:
        digest, size = part.blob.digest, part.blob.size
        if digest not in content:
            received = assembler.received(digest)
            return (State.WAITING, 0, size) if received is None else (State.TRANSFERRING, received, size)
        if not assembler.present(part):
            return State.UNPACKING, size, size
        return (State.PRESENT if digest in self.had else State.DONE), size, size


@dataclass(frozen=True, slots=True)
class _Choice:
    """The image for this machine and the documents that led to it, top first."""

    targets: tuple[str, ...]
    manifest: Manifest
    config: ConfigFile


class Documents(Origin, Protocol):
    """An origin of whole images."""

    def resolve(self, target: str, cancel: Cancel) -> str:
        """Return the digest behind a tag or digest, "" if it cannot be said at little cost."""

    def manifest(self, target: str, cancel: Cancel) -> tuple[bytes, str, str]:
        """Return a manifest's or index's bytes, media type and digest."""


class Pull:
    """Fetches one image.

    Args:
        repository: where from.
        platform: for which machine.
        content: stored blobs.
        assembler: gets the layers.
        progress: filled on the way.
    """

    def __init__(
        self, repository: Documents, platform: Platform, content: Content, assembler: Assembler, progress: Progress
    ) -> None:
        self._repository = repository
        self._platform = platform
        self._content = content
        self._assembler = assembler
        self._progress = progress
        self._cancel = Cancel()
        self._asked = 0

    async def resolve(self, target: str) -> str:
        """Return the digest behind a tag or digest by HEAD; "" if the registry does not say it."""
        return await self._blocking(lambda: self._repository.resolve(target, self._cancel))

    async def run(self, target: str) -> ImageRecord:
        """Return the record of the image, its layers unpacked and its blobs stored."""
        choice = await self._choose(target, (), _NESTED)
        manifest, config = choice.manifest, choice.config
        parts = [
            Part(blob, diff_id, chain_id)
            for blob, diff_id, chain_id in zip(
                manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
            )
        ]
        for part in parts:
            self._progress.pins |= {part.blob.digest, part.diff_id, part.chain_key}
        here = [p for p in parts if p.blob.digest in self._content and self._assembler.present(p)]
        self._progress.had = frozenset(part.blob.digest for part in here)
        self._progress.parts = tuple(parts)
        documents = (*choice.targets, manifest.config.digest)
        # Beside the layers: each fsync waits for the disk, and they keep it busy at the end.
        storing = asyncio.ensure_future(self._store(documents))
        try:
            records = await self._assembler.assemble(parts, self._repository, self._progress.observe)
        finally:
            await wait_out([storing])
        storing.result()
        return ImageRecord(
            id=manifest.config.digest,
            layers=tuple(
                ImageLayer(part.blob.digest, part.diff_id, part.blob.size, part.blob.media_type, record.key)
                for part, record in zip(parts, records, strict=True)
            ),
            targets=choice.targets,
            documents=documents,
            config=config.config,
            architecture=config.architecture,
            os=config.os,
            variant=config.variant,
            created=config.created,
            annotations=dict(manifest.annotations),
        )

    async def _choose(self, target: str, above: tuple[str, ...], depth: int) -> _Choice:
        """Follow indexes to the manifest for the platform; NotFoundError if there is none."""
        name = self._repository.name
        self._asked += 1
        if self._asked > _DOCUMENTS:
            raise DataLossError(f"{name}: {target}: more than {_DOCUMENTS} manifests lead to no image")
        data, media_type, digest = await self._blocking(lambda: self._repository.manifest(target, self._cancel))
        self._keep(digest, data)
        document = parse(data, media_type, f"{name}: manifest {digest}")
        targets = (*above, digest)
        if isinstance(document, Manifest):
            return await self._check(document, targets)
        if depth == 0:
            raise DataLossError(f"{name}: manifest {digest}: more than {_NESTED} indexes within each other")
        return await self._first(document, targets, depth)

    async def _first(self, index: Index, targets: tuple[str, ...], depth: int) -> _Choice:
        what = f"{self._repository.name}@{targets[-1]}"
        refused: NotFoundError | None = None
        for entry in choose(index, self._platform, what)[:_CANDIDATES]:
            try:
                return await self._choose(entry.digest, targets, depth - 1)
            except NotFoundError as error:
                if entry.platform is not None:
                    raise
                refused = error
        raise refused or no_platform(what, self._platform, [])

    async def _check(self, manifest: Manifest, targets: tuple[str, ...]) -> _Choice:
        what = f"{self._repository.name}@{targets[-1]}"
        data = await self._document(manifest.config)
        config = parse_config(data, f"{self._repository.name}: config {manifest.config.digest}")
        if config.architecture:
            offered = Platform(config.architecture, config.os or "linux", config.variant)
            if rank(self._platform, offered) is None:
                raise no_platform(what, self._platform, [str(offered)])
        if len(config.diff_ids) != len(manifest.layers):
            raise DataLossError(
                f"{what}: the manifest has {len(manifest.layers)} layers, its config {len(config.diff_ids)} diff ids"
            )
        return _Choice(targets, manifest, config)

    async def _document(self, blob: Descriptor) -> bytes:
        """Return a config, from the store or the registry."""
        self._progress.pins.add(blob.digest)
        await self._assembler.document(blob, self._repository, self._progress.observe)
        data = await self._blocking(lambda: self._content.read(blob.digest))
        self._keep(blob.digest, data)
        return data

    def _keep(self, digest: str, data: bytes) -> None:
        self._progress.pins.add(digest)
        self._progress.documents[digest] = data

    async def _store(self, digests: tuple[str, ...]) -> None:
        """Store small blobs; those that were stored are known also if the next fails, so that they are collected."""
        stored: list[str] = []

        def put() -> None:
            for digest in digests:
                self._content.put(digest, self._progress.documents[digest])
                stored.append(digest)

        try:
            await through("store", put)
        finally:
            for digest in stored:
                self._content.note(digest, len(self._progress.documents[digest]))

    async def _blocking(self, work: Callable[[], T]) -> T:
        """Run a request in a thread; a cancellation ends it and does not wait for it."""
        try:
            return await in_thread("pull", work)
        except asyncio.CancelledError:
            self._cancel.set()
            raise
