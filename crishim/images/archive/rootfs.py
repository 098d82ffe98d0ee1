"""A root file system's tarball to an image of one layer, as `docker import` makes it.

The tarball is unpacked, measured and packed again as gzip in one pass; the layer's diff id is that of the tarball's
plain bytes. Invariant: memory does not grow with the tarball. Sources: image-spec, config.md; docker's `import`
reference.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crishim.clock import NANOSECONDS, now
from crishim.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError
from crishim.images.archive import changes
from crishim.images.archive.api import Order
from crishim.images.archive.contents import Contents, Found, digest_of, manifest_of
from crishim.images.archive.packing import Opened, Read, gzipped
from crishim.images.archive.spool import Spool
from crishim.images.platform import Platform
from crishim.images.settings import ImageSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked order: all of the image's config but its layer."""

    platform: Platform
    document: dict[str, Any]


def plan(order: Order, host: Platform) -> Plan:
    """Check an order and return the plan; raises InvalidArgumentError with the field."""
    platform = _platform(order.platform) if order.platform else host
    created = datetime.fromtimestamp(now() // NANOSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if "\0" in order.message:
        raise InvalidArgumentError("options.message", "has a zero byte")
    return Plan(
        platform,
        {
            "created": created,
            "architecture": platform.architecture,
            "os": platform.os,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": changes.apply(order.changes, "options.changes"),
            "history": [{"created": created, "comment": order.message or "imported"}],
        },
    )


def receive(spool: Spool, read: Read, order: Plan, settings: ImageSettings, what: str) -> Contents:
    """Take a tarball in and return the image that it makes; blocks.

    Args:
        spool: where layer and config are kept.
        read: returns up to n bytes of the tarball, `b""` at the end.
        order: the image's config.
        settings: limits.
        what: names the tarball in errors.

    Raises:
        DataLossError: corrupt or empty. (Whether it is a tar archive is found out when the layer is unpacked.)
        ResourceExhaustedError: beyond a limit, or the disk is full.
    """
    opened = Opened(read, settings, what)
    digest = hashlib.sha256()

    def measured() -> Iterator[bytes]:
        for piece in opened.pieces():
            if opened.unpacked > settings.max_layer_bytes:
                raise ResourceExhaustedError(
                    f"{what} unpacks to more than {settings.max_layer_bytes} bytes (images.max_layer_bytes)"
                )
            digest.update(piece)
            yield piece

    layer = spool.add("layer", gzipped(measured()))
    if not opened.unpacked:
        raise DataLossError(f"{what} is empty")
    document = {**order.document, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]}}
    config = spool.add("config", iter([json.dumps(document, separators=(",", ":")).encode()]))
    manifest = manifest_of(config, [layer])
    target = digest_of(manifest)
    return Contents([Found(target)], [config, layer], {target: manifest}, {}, layout=False)


def _platform(text: str) -> Platform:
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or parts[0] != "linux" or not all(part.isalnum() for part in parts):
        raise InvalidArgumentError("options.platform", f"{text[:100]!r} is not like linux/amd64 or linux/arm64/v8")
    return Platform(parts[1], parts[0], parts[2] if len(parts) == 3 else "")
