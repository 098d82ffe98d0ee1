"""What the store keeps of images and layers: frozen documents of `crishim.codec`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.request import ImageConfig


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """An unpacked layer.

    Attributes:
        key: diff id of a layer that stands on its own, else chain id.
        directory: name below layers/.
        size: bytes on disk, estimated from what was written.
        inodes: how many.
        boot: the boot in which it was made; while `synced` is false it is whole only in that one.
        synced: its files have reached the disk.
        lists_root: the layer sets its root's attributes itself.
        hides_all: nothing of the layers below is seen (an opaque root).
    """

    key: str
    diff_id: str
    directory: str
    size: int
    inodes: int
    boot: str
    synced: bool = False
    lists_root: bool = False
    hides_all: bool = False


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer of an image: its blob and the key of its directory."""

    digest: str
    diff_id: str
    size: int
    media_type: str
    key: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image. Its names stand in the store's table of references.

    Attributes:
        id: digest of the config.
        targets: digests of the manifest and of the indexes that led to it.
        documents: all small blobs that belong to it: config, manifest, indexes.
        removed: it has been removed while containers hold it: not shown, not found, gone with the last of them.
    """

    id: str
    layers: tuple[ImageLayer, ...]
    targets: tuple[str, ...]
    documents: tuple[str, ...]
    config: ImageConfig
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    removed: bool = False

    def blobs(self) -> frozenset[str]:
        """Return the digests of all blobs of the image."""
        return frozenset((*self.documents, *(layer.digest for layer in self.layers)))


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the chain id of each layer (image-spec, config.md, "Layer ChainID")."""
    import hashlib

    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
    return tuple(chain)
