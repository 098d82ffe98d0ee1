"""What `images/` knows of an image, and the face it shows to `pods/` and the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crishim.images.archive.api import ArchivesApi
from crishim.images.progress import Report
from crishim.request import ImageConfig


@dataclass(frozen=True, slots=True)
class Credentials:
    """Registry credentials (CRI `AuthConfig`)."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image, bottom first: blob digest, diff id, size of the blob, directory name under layers/."""

    digest: str
    diff_id: str
    size: int
    directory: str
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the store; `id` is its config's digest (`sha256:…`)."""

    id: str
    layers: tuple[Layer, ...]
    config: ImageConfig
    size: int
    architecture: str = ""
    os: str = "linux"
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    created: str = ""
    pinned: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FsUsage:
    """What the image store uses, in bytes and inodes, kept up to date without walking trees."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pulled image: its id, the digest that the name stood for in the registry, and whether it was here already."""

    id: str
    name: str
    digest: str
    cached: bool


@dataclass(frozen=True, slots=True)
class Pushed:
    """A pushed image: the name, and its manifest's digest and size in bytes."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer of an image, its unpacked bytes on disk, and how many images here use it."""

    layer: Layer
    unpacked: int
    images: int


@dataclass(frozen=True, slots=True)
class Details:
    """An image as the command line shows it.

    Attributes:
        image: what the CRI shows too.
        manifest: digest of the manifest.
        shared: bytes of `image.size` that other images use too.
        platform: like linux/amd64.
        containers: how many use it.
        layers: bottom first.
    """

    image: Image
    manifest: str
    shared: int
    platform: str
    containers: int
    layers: tuple[LayerUse, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """The names that were taken from an image, and its id if it is gone with them."""

    names: tuple[str, ...]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The images that are gone, and the bytes that are free now."""

    images: tuple[Removed, ...]
    freed: int


class ImagesApi(Protocol):
    """What pods and ImageService need; raises only errors of `crishim.errors`."""

    async def pull(self, reference: str, credentials: Credentials | None) -> str:
        """Pull (or find unchanged) and return the image's id. Calls for one reference share one pull."""

    def find(self, reference: str) -> Image | None:
        """Return the image named by tag, digest reference, id or unique id prefix; None if absent."""

    def list(self, reference: str = "") -> list[Image]:
        """Return all images, or the one that `reference` names."""

    async def remove(self, reference: str) -> None:
        """Remove the image with all its names; absent is success. Layers in use go with their last container."""

    def hold(self, image_id: str, owner: str) -> tuple[str, ...]:
        """Pin the image's layers for `owner` (a container id), durably; return absolute layer paths, bottom first.

        Raises NotFoundError if the image is gone.
        """

    def release(self, owner: str) -> None:
        """Let go of what `owner` pinned; unknown owners are fine."""

    def fs_usage(self) -> FsUsage:
        """Return the usage of the image file system."""

    def info(self, image_id: str) -> Mapping[str, str]:
        """Return ImageStatus(verbose)'s info: key → JSON text (`info`: imageSpec, chain…)."""


class ImagesManager(ImagesApi, Protocol):
    """What the command line needs besides, through `crishim.v1.Images`; raises only errors of `crishim.errors`."""

    @property
    def archives(self) -> ArchivesApi:
        """Loads, saves and imports images."""

    async def pull_watched(self, reference: str, credentials: Credentials | None, report: Report) -> Pulled:
        """Pull with progress; shares the pull with equal calls of `pull`."""

    async def push(self, source: str, destination: str, credentials: Credentials | None, report: Report) -> Pushed:
        """Push an image, named by `source`, to `destination` (empty: `source`), with progress."""

    async def tag(self, source: str, name: str) -> tuple[str, str]:
        """Give an image a name; return its id and the normalised name."""

    def untag(self, text: str, *, force: bool) -> Removed:
        """Take one name away, the image with its last one; by id, all of them."""

    def details(self, pattern: str, *, dangling: bool) -> Sequence[Details]:
        """Return the images that a name, id or pattern of names means (empty: all), the newest first."""

    def prune(self, *, unused: bool, dry_run: bool) -> Pruned:
        """Remove images without a tag, or all, that no container uses."""
