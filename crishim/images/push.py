"""One push: the blobs that a registry lacks, side by side, then the manifest as it came, byte for byte.

What is pushed is the manifest of this machine's platform: of an index, only that one image is here. Foreign layers stay
where their URLs say. Invariant: the manifest is sent only when the registry has every blob of it; the image's blobs are
in `pins` from before the push until after it.
"""

import asyncio
import json
from collections.abc import Callable, Sequence

from crishim.errors import DataLossError, InvalidArgumentError
from crishim.images.catalog import Catalog
from crishim.images.content import Content
from crishim.images.manifest import DOCKER_MANIFEST, MANIFESTS, OCI_MANIFEST, Descriptor, Manifest, parse
from crishim.images.model import Pushed
from crishim.images.progress import Item, State
from crishim.images.records import ImageRecord
from crishim.images.reference import Reference
from crishim.images.reference import parse as parse_reference
from crishim.images.registry.target import Target
from crishim.images.registry.transport import Cancel
from crishim.images.registry.upload import Upload
from crishim.images.threads import in_thread


class Push:
    """Sends one image.

    Args:
        record: the image.
        destination: where to.
        content: the blobs.
        catalog: knows which repositories probably have which blobs.
        sent: told the number of bytes that went over the wire, piece by piece, from threads.

    Raises:
        InvalidArgumentError: the destination's digest is not the image's.
    """

    def __init__(
        self,
        record: ImageRecord,
        destination: Reference,
        content: Content,
        catalog: Catalog,
        sent: Callable[[int], None],
    ) -> None:
        self.digest = record.targets[-1]
        if destination.digest and destination.digest != self.digest:
            raise InvalidArgumentError(
                "destination", f"has the digest {destination.digest}, and the image's manifest {self.digest}"
            )
        self.pins = record.blobs()
        self._destination = destination
        self._content = content
        self._sources = _sources(catalog, destination)
        self._sent = sent
        self._cancel = Cancel()
        self._uploads: dict[str, tuple[str, int, Upload | None]] = {}
        self._manifest = State.WAITING
        self._size = 0

    def items(self) -> list[Item]:
        """Return how far each blob is, the manifest last."""
        if not self._uploads:
            return []
        found = []
        for digest, (kind, size, upload) in self._uploads.items():
            if upload is None:
                found.append(Item(digest, kind, State.SKIPPED, 0, size))
            else:
                found.append(Item(digest, kind, upload.state, upload.current, size))
        return [*found, Item(self.digest, "manifest", self._manifest, 0, self._size)]

    async def run(self, target: Target, parallel: int) -> Pushed:
        """Push, `parallel` blobs at a time; a cancellation does not wait for a registry that is silent."""
        what = f"{target.name}: manifest {self.digest}"
        data = self._content.read(self.digest)
        document = parse(data, "", what)
        if not isinstance(document, Manifest):
            raise DataLossError(f"{what}: is no image manifest; pull the image again")
        self._size = len(data)
        self._prepare(document, target)
        uploads = [upload for _, _, upload in self._uploads.values() if upload is not None]
        try:
            await self._blobs(uploads, parallel)
            self._manifest = State.TRANSFERRING
            name = self._destination.tag or self.digest
            kind = _media_type(data, document)
            await in_thread("push", lambda: target.put_manifest(name, data, kind, self.digest, self._cancel))
            self._manifest = State.DONE
        finally:
            self._cancel.set()
            for upload in uploads:
                upload.cancel.set()
        return Pushed(str(self._destination), self.digest, len(data))

    def _prepare(self, document: Manifest, target: Target) -> None:
        for kind, blob in (("config", document.config), *(("layer", layer) for layer in document.layers)):
            if blob.digest in self._uploads:
                continue
            upload = None
            if not is_foreign(blob):
                if blob.digest not in self._content:
                    raise DataLossError(f"blob {blob.digest} is not here any more; pull the image again")
                path = self._content.path(blob.digest)
                upload = Upload(target, blob.digest, blob.size, path, self._sources(blob.digest), self._sent)
            self._uploads[blob.digest] = (kind, blob.size, upload)

    async def _blobs(self, uploads: Sequence[Upload], parallel: int) -> None:
        slots = asyncio.Semaphore(parallel)

        async def send(upload: Upload) -> None:
            async with slots:
                await in_thread("push", upload.run)

        tasks = [asyncio.get_running_loop().create_task(send(upload)) for upload in uploads]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            for upload in uploads:
                upload.cancel.set()
            await asyncio.gather(*tasks, return_exceptions=True)


def is_foreign(blob: Descriptor) -> bool:
    """Tell whether registries must not have a layer (image-spec, layer.md, "Non-Distributable Layers")."""
    return bool(blob.urls) and (".nondistributable." in blob.media_type or ".foreign." in blob.media_type)


def _media_type(data: bytes, document: Manifest) -> str:
    """Return a manifest's media type, which an OCI manifest need not say itself."""
    stated = json.loads(data).get("mediaType")
    if stated in MANIFESTS:
        return str(stated)
    return DOCKER_MANIFEST if document.config.media_type.startswith("application/vnd.docker.") else OCI_MANIFEST


def _sources(catalog: Catalog, destination: Reference) -> Callable[[str], list[str]]:
    """Return what tells the other repositories of the destination's host that a blob was pulled from or pushed to."""

    def of(digest: str) -> list[str]:
        found = set()
        for record in catalog.records():
            if digest in record.blobs():
                names = [parse_reference(name) for name in catalog.names(record.id) if "@" in name]
                found |= {name.path for name in names if name.host == destination.host}
        return sorted(found - {destination.path})

    return of
