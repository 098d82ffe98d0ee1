"""An image service of its own below a temporary directory, with the extracting child as a program."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from crishim.images.extractor import ProgramExtractor
from crishim.images.service import Images
from crishim.images.settings import ImageSettings
from crishim.observe import NullObserver
from crishim.paths import Paths
from crishim.store.store import Store

SETTINGS = ImageSettings(certs_d=(), retry_seconds=0.01, retry_limit_seconds=0.05, stall_seconds=5)


@dataclass
class Observed(NullObserver):
    """Remembers what it was told."""

    received: int = 0
    sent: int = 0
    pulls: list[tuple[str, int]] = field(default_factory=list)
    pushes: list[tuple[str, int]] = field(default_factory=list)
    reclaimed: list[tuple[str, int]] = field(default_factory=list)

    def image_received(self, size: int) -> None:
        self.received += size

    def image_pull(self, *, outcome: str, seconds: float) -> None:
        self.pulls.append((outcome, self.received))
        self.received = 0

    def image_push(self, *, outcome: str, seconds: float) -> None:
        self.pushes.append((outcome, self.sent))
        self.sent = 0

    def image_sent(self, size: int) -> None:
        self.sent += size

    def leak_reclaimed(self, kind: str, count: int = 1) -> None:
        self.reclaimed.append((kind, count))


class Service:
    """Images with everything around them; an async context manager."""

    def __init__(self, root: str, extractor: Any = None, images: str = "", **settings: Any) -> None:
        self.paths = Paths(root=root, state=f"{root}/state", images=images)
        os.makedirs(root, exist_ok=True)
        self.observed = Observed()
        self.store = Store.open(self.paths.database)
        chosen = replace(SETTINGS, **settings)
        self.images = Images(self.store, self.paths, chosen, extractor or ProgramExtractor(), self.observed)

    async def __aenter__(self) -> Self:
        await self.images.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.images.stop()
        self.store.close()

    def files(self) -> list[str]:
        """Return what lies in the directories of blobs, parts and layers."""
        found = []
        for top in ("content/sha256", "content/parts", "layers"):
            place = os.path.join(self.paths.images or self.paths.root, top)
            found += [f"{top}/{name}" for name in sorted(os.listdir(place))]
        return found

    async def layers(self, reference: str) -> tuple[str, ...]:
        """Pull and return the layers' directories, bottom first."""
        return self.images.hold(await self.images.pull(reference), "test")


def overlay(layers: Sequence[str], script: str) -> str:
    """Run a shell script in the merged tree of layers, in a mount namespace of its own; return what it prints."""
    # Two lower layers at least: overlayfs refuses a single one without an upper directory.
    command = (
        'm=$(mktemp -d); mount -t tmpfs tmpfs "$m" && mkdir "$m/low" "$m/t" && '
        'mount -t overlay overlay -o "lowerdir=$1:$m/low" "$m/t" && cd "$m/t" && eval "$2"; '
        's=$?; cd /; umount -l "$m/t" "$m"; rmdir "$m"; exit $s'
    )
    stack = ":".join(reversed(layers))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", stack, script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
