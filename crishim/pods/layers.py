"""The read/write layers of containers: `containers/<id>/{upper,work,volumes}` and the plan beside them.

Removal renames the directory into `containers/.gone` and deletes it in a thread, one at a time, off the critical
path: a layer may hold a million files. What is left in `.gone` is deleted at the next start. The directory is made
before anything is held for its id, so its name in `containers/` is the trace of a create that did not finish.

Invariant: a directory with a container's id as name is whole or belongs to a create in flight.
Out of scope: mounting (executor), and whose the layers are (images).
"""

import asyncio
import contextlib
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor

from crishim.errors import KernelError
from crishim.ids import is_id
from crishim.linux.trees import remove_tree
from crishim.paths import Paths

GONE = ".gone"
PLAN = "plan.json"


class ContainerLayers:
    """The directories below `<root>/containers`."""

    def __init__(self, paths: Paths) -> None:
        self._base = paths.containers
        self._gone = f"{self._base}/{GONE}"
        self._executor: ThreadPoolExecutor | None = None
        self._pending: set[asyncio.Future[None]] = set()

    def start(self) -> None:
        """Make the directories; idempotent."""
        os.makedirs(self._base, mode=0o700, exist_ok=True)
        os.makedirs(self._gone, mode=0o700, exist_ok=True)

    def upper(self, container_id: str) -> str:
        """Return the directory of what the container wrote."""
        return f"{self._base}/{container_id}/upper"

    def volumes(self, container_id: str) -> str:
        """Return where its directories for the image's volumes are, if it has any."""
        return f"{self._base}/{container_id}/volumes"

    def written(self, container_id: str) -> tuple[str, ...]:
        """Return all directories with what the container wrote; but for the first they may be missing."""
        return self.upper(container_id), self.volumes(container_id)

    def work(self, container_id: str) -> str:
        """Return overlayfs's work directory."""
        return f"{self._base}/{container_id}/work"

    def make(self, container_id: str, top: str = "") -> None:
        """Make a container's empty layer.

        The upper directory is what the container sees of its root directory, so it takes mode and owner of the
        image's.

        Args:
            container_id: whose layer.
            top: the image's topmost layer; "" for an image without one.

        Raises:
            KernelError: a directory could not be made (ENOSPC, EROFS…).
        """
        home = f"{self._base}/{container_id}"
        try:
            os.mkdir(home, 0o700)
            os.mkdir(f"{home}/work", 0o755)
            os.mkdir(f"{home}/upper", 0o755)
            mode, uid, gid = _root_of(top)
            os.chown(f"{home}/upper", uid, gid)
            os.chmod(f"{home}/upper", mode)
        except OSError as error:
            raise KernelError(f"make the layer {home}", error.errno or errno.EIO) from None

    def write_plan(self, container_id: str, document: bytes) -> None:
        """Keep the plan that is executed, for execs of a later daemon and for those who look; whole or not at all."""
        path = f"{self._base}/{container_id}/{PLAN}"
        try:
            fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(document)
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise KernelError(f"write {path}", error.errno or errno.EIO) from None

    def read_plan(self, container_id: str) -> bytes | None:
        """Return the kept plan; None if it is gone or was cut off by a power failure."""
        try:
            with open(f"{self._base}/{container_id}/{PLAN}", "rb") as file:
                return file.read() or None
        except OSError:
            return None

    def discard(self, container_id: str) -> None:
        """Remove a layer; it is out of sight at once and its files go later. A missing one is fine.

        Raises:
            KernelError: it could not be moved away.
        """
        self.start()
        target = f"{self._gone}/{container_id}"
        try:
            os.rename(f"{self._base}/{container_id}", target)
        except FileNotFoundError:
            return
        except OSError as error:
            raise KernelError(f"move the layer {container_id} away", error.errno or errno.EIO) from None
        self._delete_later(target)

    def known(self) -> list[str]:
        """Return the ids that have a directory."""
        return [name for name in os.listdir(self._base) if is_id(name)]

    def sweep(self) -> None:
        """Delete what earlier removals left."""
        for name in os.listdir(self._gone):
            self._delete_later(f"{self._gone}/{name}")

    async def drain(self) -> None:
        """Wait until what was discarded is gone, and end the thread."""
        while self._pending:
            await asyncio.wait(self._pending)
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    def _delete_later(self, path: str) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="layers")
        future = asyncio.get_running_loop().run_in_executor(self._executor, _delete, path)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)


def _delete(path: str) -> None:
    """Delete a tree. What resists (an immutable file) is tried again at the next start."""
    with contextlib.suppress(OSError):
        remove_tree(path)


def _root_of(layer: str) -> tuple[int, int, int]:
    """Return mode, owner and group of the image's root directory."""
    try:
        status = os.stat(layer)
    except FileNotFoundError:
        return 0o755, 0, 0
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
