"""How much a container has written: bytes and inodes of its read/write layer and volumes, without making anyone wait.

A tree may hold a million files, so it is walked in a thread, and only if it can have changed: who writes uses CPU
time, so a container whose group has used none since its last walk has written nothing. `watch` looks at each every
`TICK` seconds, whether or not someone asks; callers get the last result at once, with the time at which it was
measured. Only the first answer for a small tree (`FIRST_ENTRIES`) is computed on the spot, so that a fresh container is
not shown without a figure. A tree that takes long to walk is walked less often (`SHARE`).

Bytes are blocks in use (st_blocks), as `du` counts; a file with several names counts once.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from crishim import clock
from crishim.images.threads import in_thread
from crishim.pods.views import FsStats

TICK = 7.0
"""Seconds between two looks: with the walk itself a figure is at most 10 s old while files change."""
SHARE = 20
"""A walk of one second is not repeated for so many seconds."""
FIRST_ENTRIES = 64

_BLOCK = 512


class Usage:
    """Usage by container id.

    Args:
        written: container id → its upper directory, and what else it writes to.
    """

    def __init__(self, written: Callable[[str], Sequence[str]]) -> None:
        self._written = written
        self._known: dict[str, FsStats] = {}
        self._worked: dict[str, bytes] = {}
        self._due: dict[str, float] = {}
        self._walking = ""
        self._watch: asyncio.Task[None] | None = None

    def read(self, container_id: str) -> FsStats | None:
        """Return the last known usage; None if it is not known yet."""
        found = self._known.get(container_id)
        if found is None:
            found = walk(self._written(container_id), FIRST_ENTRIES)
            if found is not None:
                self._known[container_id] = found
        return found

    def settled(self, container_id: str) -> bool:
        """Tell whether it was measured after its end, or before its start: then it stays so until it runs."""
        return self._worked.get(container_id) == b""

    def total(self, container_ids: Iterable[str], mountpoint: str) -> FsStats:
        """Return what several containers have written, as far as it is known."""
        known = [found for container_id in container_ids if (found := self.read(container_id)) is not None]
        return FsStats(
            timestamp=clock.now(),
            mountpoint=mountpoint,
            used_bytes=sum(found.used_bytes for found in known),
            inodes_used=sum(found.inodes_used for found in known),
        )

    def watch(self, containers: Callable[[], Mapping[str, str]]) -> None:
        """Measure from now on, until `close`.

        Args:
            containers: returns id → the file that tells the CPU time of its group; the file of a container that does
                not run is not there, which is how its last writes are counted, once.
        """
        self._watch = asyncio.get_running_loop().create_task(self._look(containers), name="usage of containers")

    def forget(self, container_id: str) -> None:
        """The container is gone."""
        self._known.pop(container_id, None)
        self._worked.pop(container_id, None)
        self._due.pop(container_id, None)
        if self._walking == container_id:
            self._walking = ""

    def close(self) -> None:
        """End the watch; a walk in progress is not waited for."""
        if self._watch is not None:
            self._watch.cancel()

    async def _look(self, containers: Callable[[], Mapping[str, str]]) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = clock.monotonic()
            due = {key: file for key, file in containers().items() if self._due.get(key, 0.0) <= now}
            worked = await in_thread("usage", partial(_contents, due))
            for key, content in worked.items():
                if self._worked.get(key) != content:
                    await self._measure(key, content)

    async def _measure(self, key: str, content: bytes) -> None:
        """Walk one container's trees; what it does meanwhile is seen at the next look."""
        self._walking = key
        began = clock.monotonic()
        trees = self._written(key)
        found = await in_thread("usage", lambda: walk(trees))
        if found is not None and self._walking == key:  # not removed meanwhile
            ended = clock.monotonic()
            self._known[key] = found
            self._worked[key] = content
            self._due[key] = ended + (ended - began) * SHARE


def _contents(files: Mapping[str, str]) -> dict[str, bytes]:
    return {key: _content(path) for key, path in files.items()}


def _content(path: str) -> bytes:
    """Return what a file holds; nothing if it is gone."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        return file.read()
    return b""


def walk(trees: Sequence[str], limit: int = 0) -> FsStats | None:
    """Return the usage of trees; None if the first is gone, or there are more than `limit` entries (0: no limit)."""
    timestamp = clock.now()
    blocks = inodes = 0
    linked: set[tuple[int, int]] = set()
    waiting = list(trees)
    try:
        blocks += os.lstat(trees[0]).st_blocks
        inodes += 1
    except OSError:
        return None
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:  # removed meanwhile
            continue
        with entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    key = (info.st_dev, info.st_ino)
                    if key in linked:
                        continue
                    linked.add(key)
                blocks += info.st_blocks
                inodes += 1
                if limit and inodes > limit:
                    return None
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return FsStats(timestamp=timestamp, mountpoint=trees[0], used_bytes=blocks * _BLOCK, inodes_used=inodes)
