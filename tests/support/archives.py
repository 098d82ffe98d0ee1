"""Image archives in memory, in every form that people have: docker's old and new ones, OCI layouts; right and wrong."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crishim.images.archive.api import Loaded
from crishim.images.progress import Item
from tests.fakes.registry_images import Service
from tests.support import layout
from tests.support.layout import Entry, directory, hardlink, symlink

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

Members = list[tuple[str, bytes | str]]
"""Names with their bytes, or with a symbolic link's target; a target that begins with `=` is a hard link's."""


@dataclass(frozen=True, slots=True)
class Made:
    """An image: its config, its plain layers, and its id."""

    config: bytes
    layers: tuple[bytes, ...]

    @property
    def id(self) -> str:
        return sha(self.config)


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hexes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made(*layers: Sequence[Entry] | bytes, architecture: str = "", **config: Any) -> Made:
    """Return an image of layers that are given by their entries or as plain tars."""
    tars = tuple(layer if isinstance(layer, bytes) else layout.tar(layer) for layer in layers)
    document = {
        "architecture": architecture or layout.architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in tars]},
    }
    return Made(json.dumps(document).encode(), tars)


NAME = "docker.io/library/demo:1"
BASE = [directory("a"), Entry("a/x", b"1" * 100_000), Entry("dev", kind=tarfile.CHRTYPE, device=(1, 3))]
TOP = [Entry("a/.wh.x"), Entry("y", b"y", uid=7), hardlink("z", "y"), symlink("l", "y")]
IMAGE = made(BASE, TOP, Cmd=["run"])


def pack(members: Iterable[tuple[str, bytes | str]]) -> bytes:
    """Return a tar of members, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type = tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE
                info.linkname = content.removeprefix("=")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


# --- docker-archive --------------------------------------------------------------------------------------------------


def docker_old(images: Mapping[Made, Sequence[str]]) -> Members:
    """docker 1.10 to 24: `<id>/layer.tar`, repeated layers as symbolic links, the list of contents at the end."""
    members: Members = []
    listed = []
    seen: dict[str, str] = {}
    for number, (image, tags) in enumerate(images.items()):
        paths = []
        for depth, layer in enumerate(image.layers):
            directory = f"{number:02x}{depth:02x}" * 16
            members += [(f"{directory}/VERSION", b"1.0"), (f"{directory}/json", b"{}")]
            path = f"{directory}/layer.tar"
            digest = hexes(layer)
            members.append((path, f"../{seen[digest]}" if digest in seen else layer))
            seen.setdefault(digest, path)
            paths.append(path)
        members.append((f"{hexes(image.config)}.json", image.config))
        listed.append({"Config": f"{hexes(image.config)}.json", "RepoTags": list(tags) or None, "Layers": paths})
    return [*members, ("manifest.json", as_json(listed)), ("repositories", b"{}")]


def docker_new(images: Mapping[Made, Sequence[str]], packed: Callable[[bytes], bytes] = lambda layer: layer) -> Members:
    """docker 25 on without its OCI half: blobs by digest, the list of contents first."""
    blobs: dict[str, bytes] = {}
    listed = []

    def put(data: bytes) -> str:
        blobs[f"blobs/sha256/{hexes(data)}"] = data
        return f"blobs/sha256/{hexes(data)}"

    for image, tags in images.items():
        layers = [put(packed(layer)) for layer in image.layers]
        listed.append({"Config": put(image.config), "RepoTags": list(tags) or None, "Layers": layers})
    return [("manifest.json", as_json(listed)), *blobs.items()]


# --- OCI layout ------------------------------------------------------------------------------------------------------


class Layout:
    """An OCI layout under construction."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.entries: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        self.blobs[f"blobs/sha256/{hexes(data)}"] = data
        return {"mediaType": media_type, "digest": sha(data), "size": len(data), **more}

    def document(self, document: Mapping[str, Any], media_type: str = MANIFEST, **more: Any) -> dict[str, Any]:
        """Add a manifest or index; return its descriptor."""
        return self.blob(as_json({"schemaVersion": 2, "mediaType": media_type, **document}), media_type, **more)

    def image(
        self,
        image: Made,
        packed: Callable[[bytes], bytes] = lambda data: gzip.compress(data, 1, mtime=0),
        layer_type: str = f"{LAYER}+gzip",
        media_type: str = MANIFEST,
        **more: Any,
    ) -> dict[str, Any]:
        """Add an image; return its manifest's descriptor."""
        layers = [self.blob(packed(layer), layer_type) for layer in image.layers]
        return self.document({"config": self.blob(image.config, CONFIG), "layers": layers}, media_type, **more)

    def add(self, descriptor: Mapping[str, Any], name: str = "", **annotations: str) -> None:
        """List a descriptor in index.json."""
        named = {"org.opencontainers.image.ref.name": name} if name else {}
        self.entries.append({**descriptor, "annotations": {**named, **annotations}})

    def members(self) -> Members:
        """Return the members, index.json last."""
        index = as_json({"schemaVersion": 2, "manifests": self.entries})
        return [*self.blobs.items(), ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", index)]


def oci(image: Made, name: str = "") -> Members:
    """Return an OCI layout of one image."""
    made_layout = Layout()
    made_layout.add(made_layout.image(image), name)
    return made_layout.members()


# --- streams ---------------------------------------------------------------------------------------------------------


async def chunks(data: bytes, size: int = 70_001) -> AsyncIterator[bytes]:
    """Yield bytes in odd pieces, with an empty one among them."""
    yield b""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def load(service: Service, members: Members | bytes, name: str = "") -> tuple[Loaded, ...]:
    """Load an archive into a service's store."""
    data = members if isinstance(members, bytes) else pack(members)
    return await service.images.archives.load(chunks(data), name, unheard)


async def left(service: Service) -> list[str]:
    """Return what is anywhere in a store, for archives that were refused: nothing."""
    await service.images.settled()
    return (
        service.files() + os.listdir(f"{service.paths.content}/loads") + os.listdir(f"{service.paths.content}/sha512")
    )


async def unheard(items: Sequence[Item]) -> None:
    """Take progress, and forget it."""
