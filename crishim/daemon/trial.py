"""`crishim check`'s own try: a small layer is unpacked and a small container run, by the engine, as the daemon would.

It is an instance beside the configured one: directories of its own next to the configured ones, since their file
systems decide, and a control group of its own beside the parent. Invariant: nothing of it stays, and nothing of the
configured instance is touched. A program that ends at once is all that runs, in a pod without addresses.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import secrets
import tarfile
import tempfile
from dataclasses import replace

from crishim.clock import boot_id
from crishim.codec import frozen
from crishim.config.model import Config
from crishim.daemon import directories, limits, placement
from crishim.daemon.planning import plan_settings
from crishim.daemon.surroundings import Trial
from crishim.engine import smallest
from crishim.engine.client import Engine, EngineSettings, Keeper
from crishim.engine.plan import rehearsal
from crishim.engine.plan.settings import PlanSettings
from crishim.errors import CrishimError, InternalError
from crishim.images.registry.transport import Cancel
from crishim.images.settings import ImageSettings
from crishim.images.unpack import Wanted, unpack
from crishim.linux.facts import HostFacts
from crishim.log import configure
from crishim.observe import NullObserver
from crishim.pods import files
from crishim.pods.records import SandboxSpec

_PATIENCE = 60.0
_PREFIX = ".crishim-check-"


def attempt(config: Config, facts: HostFacts) -> Trial:
    """Try both where this process is root and there are control groups; never raises."""
    if os.geteuid() != 0 or facts.layout is None:
        return Trial()
    configure("error", "console")
    limits.set_umask()
    with contextlib.ExitStack() as stack:
        try:
            places = [stack.enter_context(_place(path)) for path in (config.root, config.state)]
        except OSError as error:
            return Trial(f"mkdir {error.filename}: {os.strerror(error.errno or 0)}")
        parent = f"{config.cgroup_parent.rstrip('/')}-check-{secrets.token_hex(4)}"
        images = replace(config.images, path="")
        own = replace(config, root=places[0], state=places[1], cgroup_parent=parent, images=images)
        return asyncio.run(_Attempt(own, facts).run())


def _place(path: str) -> "tempfile.TemporaryDirectory[str]":
    """Make a directory on the file system that `path` is on, or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=path, ignore_cleanup_errors=True)


class _Attempt:
    """The two steps on one engine."""

    def __init__(self, config: Config, facts: HostFacts) -> None:
        assert facts.layout is not None
        self._config = config
        self._facts = facts
        self._layout = facts.layout
        self._group = placement.keepers_group(config.cgroup_parent)
        self._layer = f"{config.paths.layers}/0"

    async def run(self) -> Trial:
        """Do them; the second needs what the first has made."""
        paths = self._config.paths
        try:
            directories.make(paths)
            settings = plan_settings(self._config, self._facts, NullObserver())
        except (CrishimError, OSError) as error:
            return Trial(_sentence(error))
        engine = Engine(EngineSettings(paths, self._layout, self._group))
        step = "unpacking"
        try:
            async with asyncio.timeout(_PATIENCE):
                await engine.start()
                await self._unpack(engine)
                step = "container"
                await self._start(engine, settings)
        except TimeoutError:
            problem = f"not done after {_PATIENCE:g} s"
        except (CrishimError, OSError) as error:
            problem = _sentence(error)
        else:
            return Trial("", "")
        finally:
            await engine.close()
            placement.unmount_namespaces(paths)
            placement.remove(self._layout, self._group, self._config.cgroup_parent)
        return Trial(problem) if step == "unpacking" else Trial("", problem)

    async def _unpack(self, engine: Engine) -> None:
        os.mkdir(self._layer)
        data = _archive()
        diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        await unpack(_Blob(data), Wanted(diff_id, {}, ahead=False), self._layer, engine, ImageSettings(), Cancel())

    async def _start(self, engine: Engine, settings: PlanSettings) -> None:
        paths, name = self._config.paths, rehearsal.POD
        directory = paths.container(name)
        for path in (directory, f"{directory}/upper", f"{directory}/work"):
            os.mkdir(path)
        sandbox = rehearsal.small_pod(settings)
        pod, container = rehearsal.plan_small(settings, self._layer, directory)
        keeper = await engine.start_pod(pod)
        try:
            files.write(keeper.files_fd, SandboxSpec(name, sandbox, 0, boot_id()), name, None)
            for fd in (keeper.files_fd, keeper.netns_fd, keeper.netlink_fd):
                os.close(fd)
            await self._run_container(keeper, frozen(container))
        finally:
            await keeper.stop()
            engine.remove_pod(name, f"{self._config.cgroup_parent}/{name}")

    @staticmethod
    async def _run_container(keeper: Keeper, plan: bytes) -> None:
        statuses: asyncio.Queue[int | None] = asyncio.Queue()
        keeper.on_exit = lambda entry: statuses.put_nowait(entry.exit_code)
        keeper.on_lost = lambda: statuses.put_nowait(None)
        await keeper.start_container(plan)
        status = await statuses.get()
        if status is None:
            raise InternalError("its keeper ended")
        if status:
            raise InternalError(f"its program ended with status {status}")


class _Blob:
    """A layer's packed bytes, all there (see `images.fetch.Source`)."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._fd = os.memfd_create("layer", os.MFD_CLOEXEC)
        os.write(self._fd, data)

    def fileno(self) -> int:
        """Return the file."""
        return self._fd

    def wait(self, _position: int) -> int:
        """Return the size."""
        return self.size

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _archive() -> bytes:
    """Return a layer with the program and the directories that a container has mounts on."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("dev", "etc", "proc", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        program = smallest.program()
        entry = tarfile.TarInfo(rehearsal.PROGRAM.lstrip("/"))
        entry.size, entry.mode = len(program), 0o755
        archive.addfile(entry, io.BytesIO(program))
    return packed.getvalue()


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        what = f"{error.strerror}: " if error.strerror != os.strerror(error.errno or 0) else ""
        where = f": {error.filename}" if error.filename else ""
        return f"{what}{os.strerror(error.errno or 0)}{where}"
    return str(error)
