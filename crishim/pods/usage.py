"""How much a container has written: bytes and inodes of its read/write layer and volumes, without making anyone wait.

A tree may hold a million files, so it is walked in a thread, at most every `FRESH` seconds and only while someone
asks; callers get the last result at once. Only the first answer for a small tree (`FIRST_ENTRIES`) is computed on
the spot, so that a fresh container is not shown without a figure.

Bytes are blocks in use (st_blocks), as `du` counts; a file with several names counts once.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from crishim import clock
from crishim.pods.views import FsStats

FRESH = 10.0
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
        self._due: dict[str, float] = {}
        self._walking: set[str] = set()
        self._gone: set[str] = set()
        self._executor: ThreadPoolExecutor | None = None

    def read(self, container_id: str) -> FsStats | None:
        """Return the last known usage, and have it refreshed if it is old; None if it is not known yet."""
        if container_id not in self._known:
            first = walk(self._written(container_id), FIRST_ENTRIES)
            if first is not None:
                self._keep(container_id, first)
                return first
        if self._due.get(container_id, 0.0) <= clock.monotonic() and container_id not in self._walking:
            self._refresh(container_id)
        return self._known.get(container_id)

    def total(self, container_ids: Iterable[str], mountpoint: str) -> FsStats:
        """Return what several containers have written, as far as it is known; each is refreshed as `read` does."""
        known = [found for container_id in container_ids if (found := self.read(container_id)) is not None]
        return FsStats(
            timestamp=clock.now(),
            mountpoint=mountpoint,
            used_bytes=sum(found.used_bytes for found in known),
            inodes_used=sum(found.inodes_used for found in known),
        )

    def forget(self, container_id: str) -> None:
        """The container is gone."""
        self._known.pop(container_id, None)
        self._due.pop(container_id, None)
        if container_id in self._walking:
            self._gone.add(container_id)

    def close(self) -> None:
        """End the thread; a walk in progress is not waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _keep(self, container_id: str, stats: FsStats) -> None:
        self._known[container_id] = stats
        self._due[container_id] = clock.monotonic() + FRESH

    def _refresh(self, container_id: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # asked from outside the daemon's loop (a test, a tool): no thread to come back from
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._walking.add(container_id)
        future = loop.run_in_executor(self._executor, walk, self._written(container_id))
        future.add_done_callback(lambda done: self._arrived(container_id, done))

    def _arrived(self, container_id: str, done: "asyncio.Future[FsStats | None]") -> None:
        self._walking.discard(container_id)
        if done.cancelled() or done.exception() is not None:
            return
        stats = done.result()
        if stats is not None and container_id not in self._gone:
            self._keep(container_id, stats)
        self._gone.discard(container_id)


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
