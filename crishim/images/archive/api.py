"""What loading, saving and importing images asks for and gives, and the face that the server knows."""

import enum
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from crishim.images.progress import Report


class Form(enum.Enum):
    """What kind of archive."""

    DOCKER = "docker-archive"
    OCI = "oci-archive"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that came out of an archive: its id and the tags that it got."""

    id: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of an imported image: name, Dockerfile instructions, a comment, a platform like linux/arm64/v8."""

    name: str = ""
    changes: tuple[str, ...] = ()
    message: str = ""
    platform: str = ""


class ArchivesApi(Protocol):
    """Images from and to files; raises only errors of `crishim.errors`."""

    async def load(self, chunks: AsyncIterator[bytes], name: str, report: Report) -> tuple[Loaded, ...]:
        """Take in all images of an archive; `name` is for the one that the archive gives none."""

    async def import_image(self, chunks: AsyncIterator[bytes], order: Order, report: Report) -> tuple[str, str]:
        """Make an image of a root file system's tarball; return its id and its normalised name."""

    def save(self, references: Sequence[str], form: Form) -> AsyncGenerator[bytes, None]:
        """Give images as one archive, in pieces; they are pinned until the generator is closed."""
