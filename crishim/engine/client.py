"""The engine as the daemon sees it: start it, start and find pods' keepers, extract layers, remove a pod's objects.

Only mechanism: which pod, when and why is decided in `pods/`. What a pod leaves in the kernel (control group, pin,
directory) is removed by one function, whether its keeper ended as told, died, or never came to be.
"""

import _socket
import asyncio
import contextlib
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crishim.codec import to_value
from crishim.constants import KEEPER_SOCKET
from crishim.engine import interpreter, keeper_client, spare, wire
from crishim.engine.channel import Channel
from crishim.engine.keeper import journal
from crishim.engine.keeper.pod import PLACE, unmount
from crishim.engine.keeper_client import Exit, Keeper, Started, StartError, journalled
from crishim.engine.plan.types import ContainerPlan, PodPlan
from crishim.engine.unpacking import Unpacking
from crishim.errors import CrishimError, InternalError, UnavailableError
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.cgroups.layout import Layout
from crishim.linux.mountinfo import is_mount_point
from crishim.log import get_logger
from crishim.paths import Paths

log = get_logger("crishim.engine")

__all__ = ["Engine", "EngineSettings", "Exit", "Keeper", "StartError", "Started"]

_LOAD = "from crishim.engine import spawner"
_MAIN = "spawner.main(sys.argv[1:])"
_END_SHOWS = 0.2
SPARES = 2
_SPARE_DELAY = 0.03


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know of the instance.

    `keepers_group` is the control group of the spawner and all keepers, outside of the pods' groups.
    """

    paths: Paths
    layout: Layout
    keepers_group: str
    greeting_deadline: float = 30.0


class Engine:
    """Owns the spawner."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._rehearsal: tuple[PodPlan, ContainerPlan] | None = None
        self._spawner: Channel | None = None
        self._process: Any = None
        self._ready: asyncio.Future[int] | None = None
        self._replacing = asyncio.Lock()
        self._spares: deque[_socket.socket] = deque()
        self._spares_wanted = SPARES
        self._spares_coming = 0
        self._unpacking = Unpacking(lambda fd: self._send({"op": "unpacker"}, (fd,)))
        self._watched: list[str] = []
        self.spawner_pid = 0

    async def start(self) -> None:
        """Prepare the directories, start the spawner and wait until it is ready.

        Raises:
            InternalError: it did not come up; its stderr is the daemon's.
        """
        self._prepare_directories()
        cgroups.make(self._group())
        self._watched = _make_watched(self._settings.layout.watched(self._settings.keepers_group))
        try:
            await self._start_spawner()
        except BaseException:
            await self.close()
            raise

    def warm_up(self, pod: PodPlan, container: ContainerPlan) -> None:
        """Have the spawner rehearse (see `engine.rehearsal`), then fork spare keepers; does not wait for either.

        Args:
            pod: the pod of `plan.rehearsal`.
            container: its container.
        """
        self._rehearsal = pod, container
        if self._spawner is not None:
            plans = {"pod": to_value(pod, full=True), "container": to_value(container, full=True)}
            with contextlib.suppress(UnavailableError):  # it died, and is replaced when it is needed
                self._spawner.send({"op": "rehearse", **plans})
            self._ask_for_spares()

    @property
    def spares(self) -> int:
        """How many spare keepers wait."""
        return len(self._spares)

    async def close(self) -> None:
        """Let the spawner end; keepers go on."""
        self._unpacking.close()
        if self._spawner is not None:
            spawner, self._spawner = self._spawner, None
            spawner.close()
        while self._spares:
            self._spares.pop().close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
            self._process = None

    async def start_pod(self, plan: PodPlan) -> Keeper:
        """Fork a keeper that makes the pod's namespaces and control group.

        Raises:
            StartError: which step failed; nothing is left.
        """
        while self._spares and spare.fits(plan.namespaces, plan.shm_size):
            with contextlib.suppress(UnavailableError):  # it was killed while it waited
                return await self._use_spare(plan)
        process = self._process
        try:
            return await self._start_keeper(plan)
        except UnavailableError:
            if not await self._died(process):
                raise
            return await self._start_keeper(plan)  # the spawner died with the request in its hands

    async def _use_spare(self, plan: PodPlan) -> Keeper:
        """Give the pod to a spare keeper; another one is asked for when this start is likely to be over."""
        keeper = Keeper(plan.pod_id, self._spares.popleft())
        asyncio.get_running_loop().call_later(_SPARE_DELAY if self._spares else 0, self._ask_for_spares)
        try:
            os.makedirs(plan.directory, 0o700, exist_ok=True)
            keeper.be(to_value(plan, full=True))
            await keeper.greeted(self._settings.greeting_deadline)
        except BaseException:
            await self._give_up(keeper, plan)
            raise
        return keeper

    def _ask_for_spares(self) -> None:
        """Let the spawner fork what is missing; it need not be there, or answer."""
        while self._spawner is not None and len(self._spares) + self._spares_coming < self._spares_wanted:
            try:
                self._spawner.send({"op": "spare"})
            except UnavailableError:
                return
            self._spares_coming += 1

    async def _died(self, process: Any) -> bool:
        """Tell whether this spawner has ended; what it held is closed a moment before its end can be seen."""
        try:
            await asyncio.to_thread(process.wait, _END_SHOWS)
        except subprocess.TimeoutExpired:
            return False
        return self._spawner is not None

    async def _start_keeper(self, plan: PodPlan) -> Keeper:
        os.makedirs(plan.directory, 0o700, exist_ok=True)
        ours, theirs = wire.pair()
        keeper = Keeper(plan.pod_id, ours)
        try:
            await self._send({"op": "keeper", "plan": to_value(plan, full=True)}, (theirs.fileno(),))
            theirs.close()
            await keeper.greeted(self._settings.greeting_deadline)
        except BaseException:
            theirs.close()
            await self._give_up(keeper, plan)
            raise
        return keeper

    async def adopt(self, pod_id: str) -> Keeper | None:
        """Meet the keeper of a pod that an earlier daemon started; None if no one answers.

        A keeper that is there but cannot be talked to is killed: nobody would ever know of it again.
        """
        try:
            sock = wire.connect(self._settings.paths.pod(pod_id), KEEPER_SOCKET)
        except OSError:
            return None
        peer = keeper_client.pidfd_of_peer(sock, pod_id)
        try:
            keeper = Keeper(pod_id, sock)
            try:
                await keeper.greeted(self._settings.greeting_deadline)
            except CrishimError as error:
                keeper.detach()
                await keeper_client.end_silent(peer, pod_id, str(error))
                return None
            except BaseException:
                keeper.detach()
                raise
            return keeper
        finally:
            if peer >= 0:
                os.close(peer)

    def journal(self, pod_id: str) -> list[Exit]:
        """Return the exits that a dead keeper left in its journal."""
        return journalled(journal.read(self._settings.paths.journal(pod_id)))

    def remove_pod(self, pod_id: str, group: str) -> None:
        """Remove what a pod has in the kernel and below `state`: processes, control group, pin, directory.

        Idempotent; what is gone is fine. The network must have been detached before.

        Raises:
            OSError: something is still in use, and what.
        """
        directories = self._settings.layout.directories(group)
        pin, directory = self._settings.paths.pinned_netns(pod_id), self._settings.paths.pod(pod_id)
        _remove(directories, self._settings.layout.version, pin, directory)

    async def extract(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Unpack a layer's blob (see `Unpacking.extract`)."""
        return await self._unpacking.extract(fds, options)

    def _prepare_directories(self) -> None:
        paths = self._settings.paths
        for directory in (paths.state, paths.namespaces, paths.pods, paths.empty):
            os.makedirs(directory, 0o700, exist_ok=True)
        if not is_mount_point(paths.namespaces):
            # pins must stay in this mount namespace: a shared parent would copy each of them to its peers
            calls.mount(paths.namespaces, paths.namespaces, "", calls.MS_BIND)
            calls.mount("", paths.namespaces, "", calls.MS_PRIVATE)

    def _group(self) -> tuple[str, ...]:
        return self._settings.layout.directories(self._settings.keepers_group)

    async def _start_spawner(self) -> None:
        ours, theirs = wire.pair()
        fd = theirs.fileno()
        os.set_inheritable(fd, True)
        self._ready = asyncio.get_running_loop().create_future()
        group = self._group()
        arguments = [str(fd), str(self._settings.layout.version), str(len(group)), *group, *self._watched]
        self._process = interpreter.start(_LOAD, _MAIN, arguments, (fd,))
        theirs.close()
        self._spawner = Channel(ours, "spawner", self._on_event, self._on_spawner_gone)
        try:
            async with asyncio.timeout(self._settings.greeting_deadline):
                self.spawner_pid = await self._ready
        except TimeoutError:
            raise InternalError("the spawner does not come up") from None
        self._spares_coming = 0
        if self._rehearsal is not None:
            self.warm_up(*self._rehearsal)

    def _on_event(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("event") == "spare":
            self._spares_coming -= 1
            if not fds:
                self._spares_wanted = 0
        self._spares.extend(_socket.socket(fileno=fd) for fd in fds)
        if message.get("event") == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(message["pid"])

    def _on_spawner_gone(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(InternalError("the spawner ended at its start; see its messages in the log"))

    async def _send(self, message: wire.Message, fds: tuple[int, ...]) -> None:
        """Send to the spawner; one that has died (which a memory shortage may do) is replaced once."""
        with contextlib.suppress(UnavailableError):
            if self._spawner is not None:
                self._spawner.send(message, fds)
                return
        async with self._replacing:
            await self._replace_spawner()
        if self._spawner is None:
            raise UnavailableError("the engine is closed")
        self._spawner.send(message, fds)

    async def _replace_spawner(self) -> None:
        """Start another spawner, unless that was done while the lock was waited for."""
        if self._process is None or self._spawner is None or self._spawner.open:
            return
        await asyncio.to_thread(self._process.wait)
        await self._start_spawner()

    async def _give_up(self, keeper: Keeper, plan: PodPlan) -> None:
        """Take back a pod whose keeper did not come up."""
        await asyncio.shield(keeper.stop())
        with contextlib.suppress(OSError):  # what resists is without an owner now: the next start takes it
            _remove(plan.cgroup.directories, plan.cgroup.version, plan.pin, plan.directory)


def _make_watched(directories: Sequence[str]) -> list[str]:
    """Make the group where systemd counts a unit's processes; leave out a place that cannot be written."""
    made = []
    for directory in directories:
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
        except OSError as error:
            log.warning("keepers stay in the unit's group", directory=directory, error=str(error))
        else:
            made.append(directory)
    return made


def _remove(group: Sequence[str], version: int, pin: str, directory: str) -> None:
    """Remove a pod's control group, pin ("" for none) and directory; a step that fails keeps none from its turn.

    Raises:
        OSError: the first step that failed.
    """
    steps: list[Callable[[], object]] = []
    if any(map(os.path.isdir, group)):
        steps += [lambda: cgroups.kill(group, version), lambda: cgroups.remove(group)]
    if pin:
        steps += [lambda: unmount(pin), lambda: os.unlink(pin), lambda: os.rmdir(os.path.dirname(pin))]
    steps += [lambda: unmount(f"{directory}/{PLACE}"), lambda: shutil.rmtree(directory)]
    failed: list[OSError] = []
    for step in steps:
        try:
            step()
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]
