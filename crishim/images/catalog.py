"""The images and their names in memory, backed by the store: lists and look-ups touch no disk.

Invariants: a name belongs to one image; what is in memory is what is stored; a removed image is not found from the
moment of its removal. Out of scope: layers, blobs, registries.
"""

import contextlib
from collections.abc import Iterable

from crishim import codec
from crishim.errors import InvalidArgumentError
from crishim.images import reference
from crishim.images.layers import Layers
from crishim.images.model import Image, Layer
from crishim.images.records import ImageRecord
from crishim.store.store import Store

_SHORTEST_PREFIX = 3


class Catalog:
    """All images of one instance."""

    def __init__(self, store: Store, layers: Layers) -> None:
        self._store = store
        self._layers = layers
        self._records: dict[str, ImageRecord] = {}
        self._names: dict[str, str] = {}
        self._holds: dict[str, str] = {}
        self._views: dict[str, Image] = {}
        self._targets: dict[str, str] = {}
        self._pinned: frozenset[str] = frozenset()

    def pin(self, references: Iterable[str]) -> None:
        """Show the images of these references as pinned, and no others; what is no reference has no effect."""
        names = set()
        for text in references:
            with contextlib.suppress(InvalidArgumentError):
                parsed = reference.parse(text)
                names.add(f"{parsed.repository}@{parsed.digest}" if parsed.digest else parsed.repo_tag)
        self._pinned = frozenset(names)
        self._views.clear()

    def open(self) -> None:
        """Load; records that cannot be read go to quarantine, names and holds of what is not there are dropped."""
        for key, document in self._store.images.load().items():
            try:
                self._records[key] = codec.loads(ImageRecord, document)
            except codec.CodecError as error:
                self._store.images.quarantine(key, str(error))
        for name, target in self._store.references.load().items():
            if target in self._records:
                self._names[name] = target
            else:
                self._store.references.delete(name)
        for owner, target in self._store.holds.load().items():
            if target in self._records:
                self._holds[owner] = target
            else:
                self._store.holds.delete(owner)
        self._targets = {target: r.id for r in self._records.values() for target in r.targets}

    # --- reading -------------------------------------------------------------------------------------------------

    def records(self) -> list[ImageRecord]:
        """Return all records, those of removed but held images too."""
        return list(self._records.values())

    def get(self, image_id: str) -> ImageRecord | None:
        """Return a record by the image's full id, removed or not."""
        return self._records.get(image_id)

    def by_target(self, digest: str) -> ImageRecord | None:
        """Return the record of the image that a manifest or index leads to."""
        return self._records.get(self._targets.get(digest, ""))

    def owner_of(self, name: str) -> str | None:
        """Return the id of the image that has a name."""
        return self._names.get(name)

    def names(self, image_id: str) -> tuple[str, ...]:
        """Return all names of an image, sorted."""
        return tuple(sorted(name for name, target in self._names.items() if target == image_id))

    def holders(self, image_id: str) -> list[str]:
        """Return who holds an image, sorted."""
        return sorted(owner for owner, target in self._holds.items() if target == image_id)

    def all(self) -> list[Image]:
        """Return the images that are shown."""
        return [self.view(record) for record in self._records.values() if not record.removed]

    def find(self, text: str) -> ImageRecord | None:
        """Return the image named by a tag, a digest, an id or the start of an id; None if there is none."""
        found = self._by_id(text) if text.startswith("sha256:") or reference.is_hex(text) else None
        if found is not None:
            return found
        try:
            parsed = reference.parse(text)
        except InvalidArgumentError:
            return None
        name = f"{parsed.repository}@{parsed.digest}" if parsed.digest else parsed.repo_tag
        return self._shown(self._names.get(name, ""))

    def view(self, record: ImageRecord) -> Image:
        """Return the image as it is shown; the same object until something about it changes."""
        found = self._views.get(record.id)
        if found is None:
            found = self._views[record.id] = self._make_view(record)
        return found

    def hold_of(self, owner: str) -> str | None:
        """Return the id of the image that `owner` holds."""
        return self._holds.get(owner)

    def held(self) -> set[str]:
        """Return the ids of all images that something holds."""
        return set(self._holds.values())

    # --- changing (each is one transaction of the store) ------------------------------------------------------------

    def put(self, record: ImageRecord, names: list[str]) -> None:
        """Add or replace an image and give it names, wherever they pointed before."""
        with self._store.transaction():
            self._store.images.put(record.id, codec.dumps(record))
            for name in names:
                self._store.references.set(name, record.id)
        self._records[record.id] = record
        for name in names:
            self._views.pop(self._names.get(name, ""), None)
            self._names[name] = record.id
        self._targets |= dict.fromkeys(record.targets, record.id)
        self._views.pop(record.id, None)

    def untag(self, record: ImageRecord, names: Iterable[str]) -> None:
        """Take some of an image's names away; the image stays."""
        gone = [name for name in names if self._names.get(name) == record.id]
        with self._store.transaction():
            for name in gone:
                self._store.references.delete(name)
        for name in gone:
            del self._names[name]
        self._views.pop(record.id, None)

    def remove(self, record: ImageRecord, *, keep: bool) -> None:
        """Take an image's names away, and the image itself unless it must be kept for its holders."""
        names = self.names(record.id)
        with self._store.transaction():
            for name in names:
                self._store.references.delete(name)
            if keep:
                hidden = codec.from_value(ImageRecord, codec.to_value(record) | {"removed": True})
                self._store.images.put(record.id, codec.dumps(hidden))
                self._records[record.id] = hidden
            else:
                self._store.images.delete(record.id)
        for name in names:
            del self._names[name]
        self._views.pop(record.id, None)
        if not keep:
            self._records.pop(record.id, None)
            for target in record.targets:
                self._targets.pop(target, None)

    def hold(self, owner: str, image_id: str) -> None:
        """Record that `owner` uses an image."""
        self._store.holds.set(owner, image_id)
        self._holds[owner] = image_id

    def release(self, owner: str) -> str | None:
        """Forget `owner`; return the image that it held."""
        self._store.holds.delete(owner)
        return self._holds.pop(owner, None)

    # --- inside --------------------------------------------------------------------------------------------------

    def _shown(self, image_id: str) -> ImageRecord | None:
        record = self._records.get(image_id)
        return None if record is None or record.removed else record

    def _by_id(self, text: str) -> ImageRecord | None:
        wanted = text if text.startswith("sha256:") else f"sha256:{text}"
        exact = self._shown(wanted)
        if exact is not None or len(wanted) < len("sha256:") + _SHORTEST_PREFIX:
            return exact
        if not text.startswith("sha256:") and self._name_taken(text):
            return None  # a name of hexadecimal digits, like "beef"
        found = [r for key, r in self._records.items() if key.startswith(wanted) and not r.removed]
        return found[0] if len(found) == 1 else None

    def _name_taken(self, text: str) -> bool:
        try:
            return reference.parse(text).repo_tag in self._names
        except InvalidArgumentError:
            return False

    def _make_view(self, record: ImageRecord) -> Image:
        names = self.names(record.id)
        layers = []
        for layer in record.layers:
            unpacked = self._layers.get(layer.key)
            directory = unpacked.directory if unpacked else ""
            layers.append(Layer(layer.digest, layer.diff_id, layer.size, directory, layer.media_type))
        return Image(
            id=record.id,
            layers=tuple(layers),
            config=record.config,
            size=max(self._size(record), 1),
            architecture=record.architecture,
            os=record.os or "linux",
            repo_tags=tuple(name for name in names if "@" not in name),
            repo_digests=tuple(name for name in names if "@" in name),
            created=record.created,
            annotations=record.annotations,
            pinned=not self._pinned.isdisjoint(names),
        )

    def _size(self, record: ImageRecord) -> int:
        """Return the bytes of an image's blobs and unpacked layers, each of which is here once."""
        blobs = {layer.digest: layer.size for layer in record.layers}
        unpacked = {layer.key: found.size for layer in record.layers if (found := self._layers.get(layer.key))}
        return sum(blobs.values()) + sum(unpacked.values())
