"""Images to one tar archive: an OCI layout, and with docker's `manifest.json` a docker-archive at the same time.

Blobs go in as they are stored, each once, and are checked against their digests on the way; documents come first, so
that a reader knows what follows. The same images and names give the same bytes whenever and in whatever order they
are asked for. A docker-archive's layers stay packed, which docker, podman, skopeo and go-containerregistry read.
Blocking; meant for a thread. Sources: image-spec, image-layout.md; docker's image spec v1.2; pax(1) for the headers.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crishim.errors import DataLossError
from crishim.images.archive.api import Form
from crishim.images.archive.contents import IMAGE_NAME, REF_NAME
from crishim.images.content import Content
from crishim.images.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from crishim.images.records import ImageRecord

_PIECE = 1 << 20
_BLOCK = 512
_RECORD = 20 * _BLOCK  # tar pads to this


@dataclass(frozen=True, slots=True)
class Saved:
    """An image to be saved, and the tags that it keeps in the archive."""

    record: ImageRecord
    tags: tuple[str, ...]

    @property
    def manifest(self) -> str:
        """Digest of the image's own manifest, below all indexes."""
        return self.record.targets[-1]

    def blobs(self) -> tuple[str, ...]:
        """Return the digests of what goes into the archive."""
        return (self.manifest, self.record.id, *(layer.digest for layer in self.record.layers))


def check_blobs(images: Sequence[Saved], content: Content) -> None:
    """Raise DataLossError if a blob of the images is not stored."""
    for image in images:
        for digest in image.blobs():
            if digest not in content:
                raise DataLossError(f"image {image.record.id}: blob {digest} is gone; pull the image again")


def write(images: Sequence[Saved], form: Form, content: Content) -> Iterator[bytes]:
    """Yield the archive in pieces of about 1 MiB; DataLossError if a blob is damaged or vanished."""
    ordered = sorted(images, key=lambda image: (image.tags, image.manifest))
    size = 0
    for piece in _gathered(_members(ordered, form, content)):
        size += len(piece)
        yield piece
    yield bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD)


def _members(images: Sequence[Saved], form: Form, content: Content) -> Iterator[bytes]:
    yield from _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield from _file("index.json", _encoded(_index(images, content)))
    if form is Form.DOCKER:
        yield from _file("manifest.json", _encoded([_docker(image) for image in images]))
    digests = dict.fromkeys(digest for image in images for digest in image.blobs())
    algorithms = sorted({digest.partition(":")[0] for digest in digests})
    for name in ("blobs", *(f"blobs/{algorithm}" for algorithm in algorithms)):
        yield _header(f"{name}/", tarfile.DIRTYPE, 0o755)
    for digest in digests:
        yield from _blob(digest, content)


def _index(images: Sequence[Saved], content: Content) -> dict[str, Any]:
    entries = []
    for image in images:
        kind = json.loads(content.read(image.manifest)).get("mediaType") or OCI_MANIFEST
        entry = {
            "mediaType": kind if kind == DOCKER_MANIFEST else OCI_MANIFEST,
            "digest": image.manifest,
            "size": content.size(image.manifest),
        }
        entries += [{**entry, "annotations": {IMAGE_NAME: tag, REF_NAME: tag}} for tag in image.tags] or [entry]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}


def _docker(image: Saved) -> dict[str, Any]:
    return {
        "Config": _path(image.record.id),
        "RepoTags": list(image.tags) or None,
        "Layers": [_path(layer.digest) for layer in image.record.layers],
    }


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _encoded(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _header(name: str, kind: bytes, mode: int, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info.tobuf(tarfile.PAX_FORMAT)


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, tarfile.REGTYPE, 0o644, len(data))
    yield data + bytes(-len(data) % _BLOCK)


def _blob(digest: str, content: Content) -> Iterator[bytes]:
    size = content.size(digest)
    yield _header(_path(digest), tarfile.REGTYPE, 0o644, size)
    check = hashlib.new(digest.partition(":")[0])
    left = size
    try:
        with open(content.path(digest), "rb", buffering=0) as file:
            while left and (piece := file.read(min(_PIECE, left))):
                check.update(piece)
                left -= len(piece)
                yield piece
            longer = bool(file.read(1))
    except OSError as error:
        raise DataLossError(f"blob {digest}: {error.strerror}; pull the image again") from None
    if left or longer or not digest.endswith(f":{check.hexdigest()}"):
        raise DataLossError(f"blob {digest} is damaged on disk; remove the image and pull it again")
    yield bytes(-size % _BLOCK)


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that a message is not a header."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
