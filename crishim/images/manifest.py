"""Manifests, indexes and image configs: bytes from a registry to checked, frozen data.

Pure, and all input is hostile: wrong types, missing keys, endless lists and absurd sizes end in DataLossError with
the document's digest and the key. Sources: image-spec (descriptor.md, manifest.md, image-index.md, config.md) and
distribution's "Image Manifest V 2, Schema 2".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crishim.errors import DataLossError, NotFoundError, UnimplementedError
from crishim.images.platform import Platform, rank
from crishim.images.reference import is_digest
from crishim.request import ImageConfig
from crishim.words import unreadable

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
ACCEPT = f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)

DOCUMENT_LIMIT = 8 << 20
"""Largest manifest or config in bytes; registries themselves refuse manifests over 4 MiB."""
_MAX_LAYERS = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_SIZE = 1 << 50
_MAX_USER = 1024
"""Characters of a config's user and group: each list of images holds them, and peers limit a message to 16 MiB."""
_KEYS = {key.casefold(): key for key in ("schemaVersion", "mediaType", "manifests", "config", "layers")}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: what it is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    attestation: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, one per platform."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What is used of an image's config."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str = ""


def parse(data: bytes, media_type: str, what: str) -> Index | Manifest:
    """Parse an index or manifest, whichever it is.

    Args:
        data: the bytes, already checked against their digest.
        media_type: what the registry says it is; must not contradict the document's own `mediaType` and shape.
        what: names the document in errors.

    Raises:
        UnimplementedError: a manifest of schema 1.
        DataLossError: anything malformed.
    """
    reader = _Reader(what)
    document = reader.document(data)
    kind = reader.text(document.get("mediaType"), "mediaType") or media_type.partition(";")[0].strip()
    if document.get("schemaVersion") == 1 or kind.startswith(_SCHEMA1):
        raise UnimplementedError(
            f"{what}: manifests of schema 1 are not supported (no registry makes them since 2017); push the image again"
        )
    _check_unambiguous(document, kind, media_type.partition(";")[0].strip(), what)
    if "manifests" in document or kind in INDEXES:
        entries = reader.list(document, "manifests", 10_000)
        return Index(tuple(reader.descriptor(entry, f"manifests[{n}]") for n, entry in enumerate(entries)))
    if kind not in MANIFESTS and "layers" not in document:
        raise DataLossError(f"{what}: unknown manifest type {kind[:100]!r}")
    return _manifest(reader, document, what)


def _check_unambiguous(document: Mapping[str, Any], kind: str, stated: str, what: str) -> None:
    """Refuse a document that others may take for the other of index and manifest (CVE-2021-41190).

    Go's encoding/json, which registries and scanners use, finds keys in any case.
    """
    for name in document:
        meant = _KEYS.get(name.casefold(), name)
        if meant != name:
            raise DataLossError(f"{what}: has a key {name[:100]!r}, which others read as {meant!r}")
    index = "manifests" in document
    if index and ("layers" in document or "config" in document):
        raise DataLossError(f"{what}: has both `manifests` and `layers` or `config`: it is no index and no manifest")
    for said, where in ((kind, "its mediaType"), (stated, "the registry")):
        if (said in MANIFESTS and index) or (said in INDEXES and ("layers" in document or "config" in document)):
            raise DataLossError(f"{what}: {where} says {said[:100]!r}, which is not what it holds")


def _manifest(reader: "_Reader", document: Mapping[str, Any], what: str) -> Manifest:
    config = reader.descriptor(document.get("config"), "config")
    if config.size > DOCUMENT_LIMIT:
        raise DataLossError(f"{what}: config: {config.size} bytes are more than the limit of {DOCUMENT_LIMIT}")
    # Go writes an empty list as null
    entries = reader.list(document, "layers", _MAX_LAYERS) if document.get("layers", ()) is not None else []
    layers = tuple(reader.descriptor(entry, f"layers[{n}]") for n, entry in enumerate(entries))
    for number, layer in enumerate(layers):
        if layer.media_type not in _LAYERS:
            raise DataLossError(
                f"{what}: layers[{number}] has the media type {layer.media_type[:100]!r}, which is no layer of a"
                " container image (an artifact or an encrypted image?)"
            )
    return Manifest(config, layers, reader.texts(document.get("annotations"), "annotations"))


def choose(index: Index, wanted: Platform, what: str) -> tuple[Descriptor, ...]:
    """Return the manifests to try, best first: those for the platform, else those whose platform is not said.

    Raises:
        NotFoundError: none; the message names the platform and what there is.
    """
    ranked = []
    silent = []
    for position, entry in enumerate(index.manifests):
        if entry.attestation or (entry.media_type not in INDEXES | MANIFESTS):
            continue
        if entry.platform is None:
            silent.append(entry)
            continue
        fit = rank(wanted, entry.platform)
        if fit is not None:
            ranked.append((fit, position, entry))
    if ranked:
        return tuple(entry for _, _, entry in sorted(ranked, key=lambda item: item[:2]))
    if silent:
        return tuple(silent)
    raise no_platform(what, wanted, [str(e.platform) for e in index.manifests if e.platform and not e.attestation])


def no_platform(what: str, wanted: Platform, offered: list[str]) -> NotFoundError:
    """Return the error for an image that has nothing for this machine."""
    there = ", ".join(offered[:12]) or "none"
    return NotFoundError(f"{what}: no image for platform {wanted} (there is: {there})")


def parse_config(data: bytes, what: str) -> ConfigFile:
    """Parse an image config."""
    reader = _Reader(what)
    document = reader.document(data)
    rootfs = reader.mapping(document.get("rootfs"), "rootfs")
    diff_ids = reader.strings(rootfs.get("diff_ids"), "rootfs.diff_ids")
    for number, diff_id in enumerate(diff_ids):
        if not is_digest(diff_id):
            raise DataLossError(f"{what}: rootfs.diff_ids[{number}] is no digest: {diff_id[:100]!r}")
    inner = reader.mapping(document.get("config"), "config")
    user = reader.text(inner.get("User"), "config.User")
    if len(user) > _MAX_USER:
        raise DataLossError(f"{what}: config.User: is longer than {_MAX_USER} characters")
    return ConfigFile(
        config=ImageConfig(
            user=user,
            env=reader.strings(inner.get("Env"), "config.Env"),
            entrypoint=reader.strings(inner.get("Entrypoint"), "config.Entrypoint"),
            cmd=reader.strings(inner.get("Cmd"), "config.Cmd"),
            working_dir=reader.text(inner.get("WorkingDir"), "config.WorkingDir"),
            stop_signal=reader.text(inner.get("StopSignal"), "config.StopSignal"),
            labels=reader.texts(inner.get("Labels"), "config.Labels"),
            volumes=reader.strings(list(reader.mapping(inner.get("Volumes"), "config.Volumes")), "config.Volumes"),
        ),
        diff_ids=diff_ids,
        architecture=reader.text(document.get("architecture"), "architecture"),
        os=reader.text(document.get("os"), "os"),
        variant=reader.text(document.get("variant"), "variant"),
        created=reader.text(document.get("created"), "created"),
    )


def _is_text(value: Any) -> bool:
    """Tell whether a value can be a protobuf string and a C string: JSON strings may hold lone surrogates."""
    return isinstance(value, str) and "\0" not in value and (value.isascii() or not _SURROGATE.search(value))


class _Reader:
    """Typed access to a JSON document; every error names the document and the key."""

    def __init__(self, what: str) -> None:
        self._what = what

    def _wrong(self, key: str, problem: str) -> DataLossError:
        return DataLossError(f"{self._what}: {key}: {problem}")

    def document(self, data: bytes) -> Mapping[str, Any]:
        try:
            document = json.loads(data, object_pairs_hook=self._object)
        except (ValueError, RecursionError) as error:
            raise DataLossError(f"{self._what}: {unreadable(error)}") from None
        return self.mapping(document or None, "document", required=True)

    def _object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object; RFC 8259, section 4: which of two equal names counts differs from reader to reader."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._wrong(twice[:100], "is there more than once")
        return found

    def mapping(self, value: Any, key: str, *, required: bool = False) -> Mapping[str, Any]:
        if value is None and not required:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(key, "must be an object")
        return value

    def list(self, document: Mapping[str, Any], key: str, limit: int) -> list[Any]:
        value = document.get(key)
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(key, f"must be an array of at most {limit}")
        return value

    def text(self, value: Any, key: str) -> str:
        if value is None:
            return ""
        if not _is_text(value):
            raise self._wrong(key, "must be a string without zero bytes or lone surrogates")
        found: str = value
        return found

    def strings(self, value: Any, key: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(_is_text(v) for v in value):
            raise self._wrong(key, "must be an array of strings without zero bytes or lone surrogates")
        return tuple(value)

    def texts(self, value: Any, key: str) -> dict[str, str]:
        found = self.mapping(value, key)
        if not all(_is_text(name) for name in found):
            raise self._wrong(key, "has a name with a zero byte or a lone surrogate")
        return {name: self.text(text, f"{key}.{name[:100]!r}") for name, text in found.items()}

    def descriptor(self, value: Any, key: str) -> Descriptor:
        entry = self.mapping(value, key, required=True)
        digest = self.text(entry.get("digest"), f"{key}.digest")
        if not is_digest(digest):
            raise self._wrong(f"{key}.digest", f"{digest[:100]!r} is no digest")
        size = entry.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
            raise self._wrong(f"{key}.size", "must be a size in bytes")
        annotations = self.texts(entry.get("annotations"), f"{key}.annotations")
        platform = None
        if entry.get("platform") is not None:
            found = self.mapping(entry["platform"], f"{key}.platform")
            platform = Platform(
                self.text(found.get("architecture"), f"{key}.platform.architecture"),
                self.text(found.get("os"), f"{key}.platform.os"),
                self.text(found.get("variant"), f"{key}.platform.variant"),
            )
        unknown = platform is not None and "unknown" in {platform.os, platform.architecture}
        return Descriptor(
            media_type=self.text(entry.get("mediaType"), f"{key}.mediaType"),
            digest=digest,
            size=size,
            platform=platform,
            urls=self.strings(entry.get("urls"), f"{key}.urls"),
            attestation=unknown or annotations.get("vnd.docker.reference.type") == "attestation-manifest",
        )
