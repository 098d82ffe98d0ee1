"""What an archive says that it holds: `index.json` of an OCI layout, or docker's `manifest.json`.

All input is hostile: wrong types, missing members and contradictions end in DataLossError with the file and the key.
A docker-archive has no manifests; each image gets one here, of the same bytes whenever the archive has the same
members. Where an archive is both (docker from 25 on, containerd, ours), the layout counts and `manifest.json` only adds
names. Out of scope: what manifests mean (`images.pull`). Sources: image-spec, image-layout.md and annotations.md;
docker's image spec v1.2.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from crishim.errors import CrishimError, DataLossError, InvalidArgumentError, UnimplementedError
from crishim.images.archive.spool import Member, Spool
from crishim.images.content import Content
from crishim.images.manifest import (
    DOCUMENT_LIMIT,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    choose,
    parse,
)
from crishim.images.platform import Platform
from crishim.images.reference import Reference
from crishim.images.reference import parse as parse_reference
from crishim.images.registry.transport import Cancel, Response
from crishim.words import unreadable

IMAGE_NAME = "io.containerd.image.name"
"""Annotation with a full name (containerd, docker, BuildKit)."""
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation with a full name (podman, skopeo) or just a tag (containerd, BuildKit, umoci)."""

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

_IMAGES = 1000
_LAYERS = 1000
_HEX = re.compile(r"(?:^|/)(?P<hex>[0-9a-f]{64})(?:\.json)?$")
_PACKINGS = ((b"\x1f\x8b", "+gzip"), (b"\x28\xb5\x2f\xfd", "+zstd"))


@dataclass(slots=True)
class Found:
    """An image of an archive: the digest of its manifest or index, and its names."""

    target: str
    names: list[Reference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that an archive offers to this machine.

    Attributes:
        images: at least one.
        members: what has to become blobs before the images can be had.
        documents: manifests that were made here, by digest.
        extra: names that `manifest.json` gives, by the digest of the image's config.
        layout: the manifests are the archive's own.
    """

    images: Sequence[Found]
    members: Sequence[Member]
    documents: Mapping[str, bytes]
    extra: Mapping[str, Sequence[Reference]]
    layout: bool


class ArchiveOrigin:
    """An archive as where a pull gets its image from: its blobs are stored already, so what is asked for is missing.

    Args:
        name: names the archive in errors.
        content: the stored blobs.
        documents: manifests that are no blobs.
    """

    def __init__(self, name: str, content: Content, documents: Mapping[str, bytes]) -> None:
        self.name = name
        self._content = content
        self._documents = documents

    def resolve(self, target: str, cancel: Cancel) -> str:
        """A digest stands for itself."""
        del cancel
        return target

    def manifest(self, target: str, cancel: Cancel) -> tuple[bytes, str, str]:
        """Return a manifest or index of the archive."""
        del cancel
        if target in self._documents:
            return self._documents[target], OCI_MANIFEST, target
        if target not in self._content:
            raise DataLossError(f"{self.name} lacks the manifest {target}: it is not whole")
        if self._content.size(target) > DOCUMENT_LIMIT:
            raise DataLossError(f"{self.name}: manifest {target} is larger than {DOCUMENT_LIMIT} bytes")
        return self._content.read(target), "", target

    def blob(self, digest: str, offset: int, urls: Sequence[str], cancel: Cancel) -> tuple[Response, int]:
        """Refuse: what the archive has is not asked for."""
        del offset, cancel
        if urls:
            raise DataLossError(
                f"{self.name} lacks the foreign layer {digest}, which only {urls[0][:200]!r} has: pull the image"
            )
        raise DataLossError(f"{self.name} lacks the blob {digest}: it is not whole")

    def doubtful(self, digest: str) -> bool:
        """There is one archive only."""
        del digest
        return False

    def other(self, digest: str, problem: CrishimError) -> bool:
        """There is one archive only."""
        del digest, problem
        return False


def read(spool: Spool, platform: Platform, what: str) -> Contents:
    """Find out what a spooled archive holds; reads its list of contents, and no blob but docker's configs' digests.

    Args:
        spool: the archive's members.
        platform: which image of several to take.
        what: names the archive in errors.

    Raises:
        DataLossError: not an image archive, or one that contradicts itself.
        NotFoundError: no image for the platform.
        UnimplementedError: an archive of a form that is no longer made.
    """
    reader = _Reader(spool, what)
    top = reader.top()
    listed = reader.listed(top) if spool.find(f"{top}manifest.json") else []
    if spool.find(f"{top}index.json"):
        return reader.layout(top, platform, listed)
    return reader.docker(listed)


@dataclass(frozen=True, slots=True)
class _Listed:
    """An entry of `manifest.json`."""

    config: Member
    layers: tuple[Member, ...]
    names: tuple[Reference, ...]


class _Reader:
    def __init__(self, spool: Spool, what: str) -> None:
        self._spool = spool
        self._what = what

    def _wrong(self, key: str, problem: str) -> NoReturn:
        raise DataLossError(f"{self._what}: {key}: {problem}")

    def top(self) -> str:
        """Return what all names begin with: nothing, or the directory that was packed."""
        if self._spool.find("index.json") or self._spool.find("manifest.json"):
            return ""
        lists = [n for n in self._spool.names() if n.count("/") == 1 and n.endswith(("/index.json", "/manifest.json"))]
        tops = {name.partition("/")[0] for name in lists}
        if len(tops) == 1:
            return f"{tops.pop()}/"
        if self._spool.find("repositories"):
            raise UnimplementedError(
                f"{self._what} was saved by docker before 1.10 (schema 1), which is not supported: load it into a newer"
                " docker and save it again"
            )
        raise DataLossError(
            f"{self._what} has neither index.json nor manifest.json at its top: it is no image archive; 'crishim"
            " import' takes the tarball of a root file system"
        )

    def _json(self, name: str) -> Any:
        member = self._member(name, name)
        data = member.read(DOCUMENT_LIMIT, f"{self._what}: {name}")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            self._wrong(name, unreadable(error))

    def _member(self, name: Any, key: str) -> Member:
        if not isinstance(name, str):
            self._wrong(key, "must be the name of a member")
        member = self._spool.find(name)
        if member is None:
            self._wrong(key, f"{name[:200]!r} is not in the archive: it is not whole")
        return member

    def _name(self, text: Any, key: str) -> Reference:
        if not isinstance(text, str):
            self._wrong(key, "must be a string")
        try:
            return parse_reference(text[:1000], key)
        except InvalidArgumentError as error:
            raise DataLossError(f"{self._what}: {error}") from None

    # --- OCI layout ----------------------------------------------------------------------------------------------

    def layout(self, top: str, platform: Platform, listed: Sequence[_Listed]) -> Contents:
        """Read an OCI layout; entries for other platforms and attestations are passed over."""
        if self._spool.find(f"{top}oci-layout"):
            self._check_version(self._json(f"{top}oci-layout"))
        name = f"{top}index.json"
        data = self._member(name, name).read(DOCUMENT_LIMIT, f"{self._what}: {name}")
        index = parse(data, OCI_INDEX, f"{self._what}: {name}")
        if not isinstance(index, Index):
            self._wrong(name, "is no index")
        names = self._entry_names(name, json.loads(data)["manifests"])
        found: dict[str, Found] = {}
        for digest, reference in self._chosen(index, names, platform):
            image = found.setdefault(digest, Found(digest))
            if reference is not None and reference not in image.names:
                image.names.append(reference)
        if not found:
            self._wrong(name, "lists no image")
        blobs = [self._member(n, n) for n in self._spool.names() if n.startswith(f"{top}blobs/")]
        extra = {entry.config.digest: entry.names for entry in listed}
        return Contents(list(found.values()), blobs, {}, extra, layout=True)

    def _check_version(self, document: Any) -> None:
        version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
        if not isinstance(version, str) or not version.startswith("1."):
            raise UnimplementedError(
                f"{self._what}: oci-layout: imageLayoutVersion {str(version)[:40]!r} is not supported, only 1"
            )

    def _entry_names(self, name: str, entries: Sequence[Mapping[str, Any]]) -> list[Reference | None]:
        found: list[Reference | None] = []
        for number, entry in enumerate(entries):
            annotations = entry.get("annotations") or {}
            full, ref = annotations.get(IMAGE_NAME), annotations.get(REF_NAME)
            text = full or (ref if ref and ("/" in ref or ":" in ref) else None)  # a bare tag is the name of no image
            reference = self._name(text, f"{name}: manifests[{number}]") if text else None
            if reference is not None and reference.digest not in {"", entry["digest"]}:
                self._wrong(f"{name}: manifests[{number}]", f"is named {text!r} but has the digest {entry['digest']}")
            found.append(reference)
        return found

    def _chosen(
        self, index: Index, names: Sequence[Reference | None], platform: Platform
    ) -> list[tuple[str, Reference | None]]:
        """Return digest and name of the entries to take: of those with one name the best; of the nameless, each."""
        groups: dict[Reference | None, list[Descriptor]] = {}
        for entry, name in zip(index.manifests, names, strict=True):
            if not entry.attestation and entry.media_type in INDEXES | MANIFESTS | {""}:
                groups.setdefault(name, []).append(entry)
        chosen: list[tuple[str, Reference | None]] = []
        for name, entries in groups.items():
            best = choose(Index(tuple(entries)), platform, self._what)
            if name is None and best[0].platform is None:
                chosen += [(entry.digest, None) for entry in best]
            else:
                chosen.append((best[0].digest, name))
        return chosen

    # --- docker-archive --------------------------------------------------------------------------------------------

    def listed(self, top: str) -> list[_Listed]:
        """Read `manifest.json`."""
        name = f"{top}manifest.json"
        entries = self._json(name)
        if not isinstance(entries, list) or len(entries) > _IMAGES:
            self._wrong(name, f"must be an array of at most {_IMAGES}")
        return [self._entry(top, entry, f"{name}: [{number}]") for number, entry in enumerate(entries)]

    def _entry(self, top: str, entry: Any, key: str) -> _Listed:
        if not isinstance(entry, dict):
            self._wrong(key, "must be an object")
        config = self._below(top, entry.get("Config"), f"{key}.Config")
        said = _HEX.search(entry["Config"])
        if said and not config.digest.endswith(f":{said['hex']}"):
            self._wrong(f"{key}.Config", f"{entry['Config'][:200]!r} has the digest {config.digest}")
        layers = entry.get("Layers") or []
        names = entry.get("RepoTags") or []
        if not isinstance(layers, list) or len(layers) > _LAYERS:
            self._wrong(f"{key}.Layers", f"must be an array of at most {_LAYERS}")
        if not isinstance(names, list) or len(names) > _IMAGES:
            self._wrong(f"{key}.RepoTags", f"must be an array of at most {_IMAGES}")
        references = [self._name(text, f"{key}.RepoTags") for text in names]
        if any(reference.digest for reference in references):
            self._wrong(f"{key}.RepoTags", "must be tags, not digests")
        members = tuple(self._below(top, layer, f"{key}.Layers[{number}]") for number, layer in enumerate(layers))
        return _Listed(config, members, tuple(references))

    def _below(self, top: str, name: Any, key: str) -> Member:
        return self._member(f"{top}{name}" if isinstance(name, str) else name, key)

    def docker(self, listed: Sequence[_Listed]) -> Contents:
        """Give the images of a `manifest.json` manifests."""
        if not listed:
            self._wrong("manifest.json", "lists no image")
        found: dict[str, Found] = {}
        documents: dict[str, bytes] = {}
        for entry in listed:
            data = manifest_of(entry.config, entry.layers)
            digest = digest_of(data)
            documents[digest] = data
            image = found.setdefault(digest, Found(digest))
            image.names += [reference for reference in entry.names if reference not in image.names]
        members = [member for entry in listed for member in (entry.config, *entry.layers)]
        return Contents(list(found.values()), members, documents, {}, layout=False)


def manifest_of(config: Member, layers: Sequence[Member]) -> bytes:
    """Return an OCI manifest for an image that has none."""

    def described(member: Member, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": member.digest, "size": member.size}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, OCI_CONFIG),
        "layers": [described(layer, OCI_LAYER + _packing(layer.head())) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    """Return the digest that a document made here is known by."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _packing(head: bytes) -> str:
    return next((suffix for magic, suffix in _PACKINGS if head.startswith(magic)), "")
