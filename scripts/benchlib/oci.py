"""Images for the bench, made from nothing: layers, configs and manifests as the OCI image-spec wants them.

Three images: `busybox` (busybox's applets, `lines` for the log row), `pause` (for containerd's pods) and `big` (the
pull row's: 20,000 files of 15,000 bytes in four layers, half of them incompressible). All bytes are the same on each
run, so a cache can keep them. Out of scope: pushing (registry.py).
"""

import gzip
import hashlib
import io
import json
import os
import platform
import random
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
BIG_LAYERS = 4
BIG_FILES = 20_000
BIG_FILE = 15_000
PROGRAMS = os.path.join(os.path.dirname(__file__), "programs")


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest and the blobs that it names, by digest."""

    manifest: bytes
    blobs: dict[str, bytes]


def architecture() -> str:
    """Return this machine's architecture in the OCI's words."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def image(layers: Iterable[bytes], command: list[str]) -> Image:
    """Put plain tars together into an image that runs `command`."""
    blobs: dict[str, bytes] = {}
    diffs, described = [], []
    for layer in layers:
        packed = gzip.compress(layer, compresslevel=6, mtime=0)
        diffs.append(_digest(layer))
        described.append(_described(LAYER, packed, blobs))
    config = {
        "architecture": architecture(),
        "os": "linux",
        # StopPodSandbox kills at once in crishim and containerd; CRI-O first sends this, and waits for its effect
        "config": {"Cmd": command, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "StopSignal": "SIGKILL"},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    packed_config = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _described(CONFIG, packed_config, blobs),
        "layers": described,
    }
    return Image(json.dumps(manifest).encode(), blobs)


def busybox(scratch: str) -> Image:
    """Return the small image: busybox with its applets as hard links, and `lines`."""
    listed = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True)
    with open(_busybox_path(), "rb") as file:
        program = file.read()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "var"):
            _directory(tar, name)
        _file(tar, "bin/busybox", program, 0o755)
        for applet in sorted(set(listed.stdout.split()) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname, link.mode = tarfile.LNKTYPE, "bin/busybox", 0o755
            tar.addfile(link)
        _file(tar, "bin/lines", compiled("lines", scratch), 0o755)
        _file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        _file(tar, "etc/group", b"root:x:0:\n", 0o644)
    return image([buffer.getvalue()], ["/bin/sh"])


def pause(scratch: str) -> Image:
    """Return the image of containerd's pods."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _file(tar, "pause", compiled("pause", scratch), 0o755)
    return image([buffer.getvalue()], ["/pause"])


def big() -> Image:
    """Return the image of the pull row: 300 MB in 20,000 files and four layers, half of it incompressible."""
    return image((_big_layer(number) for number in range(BIG_LAYERS)), ["/bin/sh"])


def compiled(name: str, scratch: str) -> bytes:
    """Return one of the bench's C programs, built statically."""
    target = os.path.join(scratch, name)
    source = os.path.join(PROGRAMS, f"{name}.c")
    subprocess.run(["cc", "-static", "-O2", "-s", "-o", target, source], check=True)
    with open(target, "rb") as file:
        return file.read()


def unpack(small: Image, root: str) -> None:
    """Unpack an image of ours into a directory: the root file system of the peers that take bundles."""
    manifest = json.loads(small.manifest)
    for layer in manifest["layers"]:
        subprocess.run(["tar", "-xz", "-C", root], input=small.blobs[layer["digest"]], check=True)


def _big_layer(number: int) -> bytes:
    chance = random.Random(number)
    text = b"the quick brown fox jumps over the lazy dog, line %d\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        top = f"data{number}"
        _directory(tar, top)
        for index in range(BIG_FILES // BIG_LAYERS):
            if index % 100 == 0:
                folder = f"{top}/d{index // 100:03}"
                _directory(tar, folder)
            half = chance.randbytes(BIG_FILE // 2)
            rest = (text % index) * (BIG_FILE // 2 // len(text) + 1)
            _file(tar, f"{folder}/f{index:05}", (half + rest)[:BIG_FILE], 0o644)
    return buffer.getvalue()


def _busybox_path() -> str:
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path):
            return path
    raise FileNotFoundError("busybox is not installed (Debian: apt install busybox-static)")


def _described(kind: str, blob: bytes, blobs: dict[str, bytes]) -> dict[str, object]:
    blobs[_digest(blob)] = blob
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _directory(tar: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry)


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
