"""What may lose its name, what nothing uses, and who shares what: pure decisions over the catalog.

The rules are docker's and podman's where these agree. An image goes with its last name; the digest references of a
repository go with that repository's last tag of the image. What a container uses keeps its name unless it is forced.
*Dangling* is an image without a tag, also one that was pulled by digest alone. Out of scope: carrying it out
(`service`); the CRI's RemoveImage, which takes all names away.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from crishim.clock import moment
from crishim.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from crishim.images import reference
from crishim.images.catalog import Catalog
from crishim.images.content import Content
from crishim.images.layers import Layers
from crishim.images.model import Details, Image, LayerUse
from crishim.images.platform import Platform
from crishim.images.records import ImageLayer, ImageRecord
from crishim.images.reference import Reference

_PATTERN = frozenset("*?[")
_SHOWN = 3
_OLDEST = datetime.min.replace(tzinfo=UTC)


def find(catalog: Catalog, text: str) -> ImageRecord:
    """Return the image of a name or id; NotFoundError, or InvalidArgumentError for what can be neither."""
    record = catalog.find(text)
    if record is not None:
        return record
    if not is_id(text):
        reference.parse(text, "image")
    raise NotFoundError(f"no image {text} is here: see 'crishim images', or pull it")


def is_id(text: str) -> bool:
    """Tell whether a text is an id or the start of one, and no name."""
    return text.startswith("sha256:") or reference.is_hex(text)


def plan_removal(catalog: Catalog, record: ImageRecord, text: str, *, force: bool) -> tuple[str, ...]:
    """Return the names to take away when a person removes `text`, which has led to `record`.

    Raises:
        FailedPreconditionError: containers use it, or an id has several names, and it is not forced.
    """
    names = catalog.names(record.id)
    gone = _named(names, text)
    if not gone:
        gone = names
        tags = [name for name in names if "@" not in name]
        if len(tags) > 1 and not force:
            shown = ", ".join(tags[:_SHOWN]) + (", …" if len(tags) > _SHOWN else "")
            raise FailedPreconditionError(
                f"image {record.id} has {len(tags)} names ({shown}): remove the one you mean, or all of them by --force"
            )
    holders = catalog.holders(record.id)
    if holders and len(gone) == len(names) and not force:
        raise FailedPreconditionError(
            f"image {text} is used by {_containers(holders)}: remove them first, or only take its name away by --force"
        )
    return gone


def destination(catalog: Catalog, record: ImageRecord, source: str, text: str) -> Reference:
    """Return where an image goes that was given as `source`, with the destination `text` or none."""
    if text:
        return reference.parse(text, "destination")
    if not _named(catalog.names(record.id), source):
        raise InvalidArgumentError("destination", f"image {source} is given by its id: say to which name it goes")
    return reference.parse(source, "image")


def frees(catalog: Catalog, content: Content, layers: Layers, gone: Sequence[ImageRecord]) -> int:
    """Return how many bytes on disk the removal of images sets free: what no other image has."""
    ids = {record.id for record in gone}
    kept = [record for record in catalog.records() if record.id not in ids]
    blobs = _blobs(gone) - _blobs(kept)
    keys = _keys(gone) - _keys(kept)
    unpacked = [found.size for key in keys if (found := layers.get(key)) is not None]
    return sum(content.size(digest) for digest in blobs) + sum(unpacked)


def unused(catalog: Catalog, *, tagged: bool) -> list[ImageRecord]:
    """Return the images that no container uses: those without a tag, or all of them."""
    held = catalog.held()
    return [
        record
        for record in catalog.records()
        if record.id not in held
        and not record.removed
        and not catalog.view(record).pinned
        and (tagged or not catalog.view(record).repo_tags)
    ]


def details(catalog: Catalog, layers: Layers, pattern: str, *, dangling: bool) -> list[Details]:
    """Return what is to be said of the images that a name, an id or a pattern of names means, the newest first.

    Those made at the same time, which is 1970 for many that are built reproducibly, come in the order of their names.
    """
    shown = [record for record in catalog.records() if not record.removed]
    uses = Counter(layer.key for record in shown for layer in _distinct(record))
    if pattern and not _PATTERN & set(pattern):
        wanted = catalog.find(pattern)
        if wanted is None and not is_id(pattern):
            reference.parse(pattern, "filter")
        chosen = [wanted] if wanted is not None else _of_repository(catalog, shown, pattern)
    else:
        chosen = [record for record in shown if not pattern or _matches(catalog.view(record), pattern)]
    found = [_details(catalog, layers, record, uses) for record in chosen]
    if dangling:
        found = [one for one in found if not one.image.repo_tags]
    found.sort(key=lambda one: (one.image.repo_tags, one.image.repo_digests, one.image.id))
    return sorted(found, key=lambda one: moment(one.image.created) or _OLDEST, reverse=True)


def _named(names: Sequence[str], text: str) -> tuple[str, ...]:
    """Return the names that go when `text` goes: it, and a repository's digests with its last tag; none for an id."""
    try:
        parsed = reference.parse(text)
    except InvalidArgumentError:
        return ()
    wanted = f"{parsed.repository}@{parsed.digest}" if parsed.digest else parsed.repo_tag
    if wanted not in names:
        return ()
    if parsed.digest:
        return (wanted,)
    left = [name for name in names if name != wanted and name.startswith(f"{parsed.repository}:")]
    digests = [] if left else [name for name in names if name.startswith(f"{parsed.repository}@")]
    return (wanted, *digests)


def _containers(holders: Sequence[str]) -> str:
    shown = ", ".join(holder[:13] for holder in holders[:_SHOWN])
    more = len(holders) - _SHOWN
    return f"container{'s' if len(holders) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")


def _matches(image: Image, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(_short(name), pattern)
        for name in (*image.repo_tags, *image.repo_digests)
    )


def _short(name: str) -> str:
    """Return a name as people type it: without the default registry."""
    return name.removeprefix(f"{reference.DEFAULT_HOST}/").removeprefix("library/")


def _of_repository(catalog: Catalog, shown: Iterable[ImageRecord], text: str) -> list[ImageRecord]:
    """Return the images of a repository that was given without a tag."""
    if is_id(text):
        return []
    parsed = reference.parse(text, "filter")
    if text.endswith(f":{parsed.tag}") or parsed.digest:
        return []
    starts = (f"{parsed.repository}:", f"{parsed.repository}@")
    return [record for record in shown if any(name.startswith(starts) for name in catalog.names(record.id))]


def _blobs(records: Iterable[ImageRecord]) -> set[str]:
    return {digest for record in records for digest in record.blobs()}


def _keys(records: Iterable[ImageRecord]) -> set[str]:
    return {layer.key for record in records for layer in record.layers}


def _distinct(record: ImageRecord) -> list[ImageLayer]:
    return list({layer.key: layer for layer in record.layers}.values())


def _details(catalog: Catalog, layers: Layers, record: ImageRecord, uses: Counter[str]) -> Details:
    image = catalog.view(record)
    shown, shared = [], {}
    for layer, seen in zip(record.layers, image.layers, strict=True):
        unpacked = layers.get(layer.key)
        size = unpacked.size if unpacked else 0
        shown.append(LayerUse(seen, size, uses[layer.key]))
        if uses[layer.key] > 1:
            shared[layer.key] = layer.size + size
    return Details(
        image=image,
        manifest=record.targets[-1],
        shared=min(sum(shared.values()), image.size),
        platform=str(Platform(record.architecture, record.os or "linux", record.variant)),
        containers=len(catalog.holders(record.id)),
        layers=tuple(shown),
    )
