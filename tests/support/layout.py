"""Images as OCI layouts, written in pure Python: directories that skopeo and registries take.

An image is a list of layers, a layer a list of entries in tar order. Nothing depends on the clock or on the user's
umask: the same input gives the same digests.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tar entry; `target` is for links, `data` for files. Paths have no leading slash."""

    path: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    """Return a directory entry."""
    return Entry(path, mode=mode, kind=tarfile.DIRTYPE, uid=uid, gid=gid)


def symlink(path: str, target: str) -> Entry:
    """Return a symbolic link entry."""
    return Entry(path, mode=0o777, kind=tarfile.SYMTYPE, target=target)


def hardlink(path: str, target: str) -> Entry:
    """Return a hard link entry; `target` is a path of the image without leading slash."""
    return Entry(path, mode=0o755, kind=tarfile.LNKTYPE, target=target)


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What an image consists of; `config` is the OCI config's inner object (`Cmd`, `Env`, `User`…)."""

    layers: Sequence[Sequence[Entry]]
    config: Mapping[str, Any] = field(default_factory=dict)


def tar(entries: Iterable[Entry]) -> bytes:
    """Return an uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.target
            info.uid, info.gid, info.size = entry.uid, entry.gid, len(entry.data)
            info.devmajor, info.devminor = entry.device
            archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def architecture() -> str:
    """Return this machine's architecture in OCI terms."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def write(path: str, plan: ImagePlan) -> str:
    """Write the image as an OCI layout at `path`; return the image's id (its config's digest)."""
    os.makedirs(os.path.join(path, "blobs", "sha256"), exist_ok=True)
    layers, diff_ids = [], []
    for entries in plan.layers:
        data = tar(entries)
        diff_ids.append("sha256:" + hashlib.sha256(data).hexdigest())
        blob = gzip.compress(data, compresslevel=1, mtime=0)
        layers.append(_blob(path, blob, "application/vnd.oci.image.layer.v1.tar+gzip"))
    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": dict(plan.config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [],
    }
    described = _blob(path, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described,
        "layers": layers,
    }
    top = _blob(path, json.dumps(manifest).encode(), manifest["mediaType"])
    _file(path, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    _file(path, "index.json", json.dumps({"schemaVersion": 2, "manifests": [top]}).encode())
    return str(described["digest"])


def _blob(path: str, data: bytes, media_type: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    _file(path, os.path.join("blobs", "sha256", digest), data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _file(path: str, name: str, data: bytes) -> None:
    with open(os.path.join(path, name), "wb") as file:
        file.write(data)
