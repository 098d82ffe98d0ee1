"""What `images/` knows of an image, and the face it shows to `pods/` and the server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from crishim.engine.plan.request import ImageConfig


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
