"""crishim's engine without the CRI: a spawner of its own, and one pod with one container per turn.

A turn is what the engine does for a pod that runs /bin/true: read/write layer, keeper, network, IPC and UTS
namespaces, control group, container, its exit, the keeper's end, and all of it removed. The plan is the planner's
for an ordinary request. Out of scope: images and networks.
"""

import asyncio
import os
import time

from crishim import codec
from crishim.engine.client import Engine, EngineSettings, Exit
from crishim.engine.plan import types
from crishim.engine.plan.rehearsal import plan_rehearsal
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.cgroups.layout import detect
from crishim.linux.trees import remove_tree
from crishim.paths import Paths
from scripts.benchlib import default_plan
from scripts.benchlib.cage import Cage, working_directories

DEADLINE = 30.0


class CrishimEngine:
    """The engine with a default plan on an image's unpacked layer; `run` takes samples."""

    def __init__(self, cage: Cage, layer: str) -> None:
        self.cage = cage
        root, state = working_directories("engine")
        self._paths = Paths(root, state)
        self._layout = detect()
        self.place = self._paths.empty
        os.makedirs(self.place, mode=0o711, exist_ok=True)
        self._prepare_parent()
        self._planning = default_plan.host_settings(self._paths, self._layout, cage.pods)
        self.pod, self.container = default_plan.make(self._planning, layer)
        self._frozen = codec.frozen(self.container)
        os.makedirs(os.path.dirname(os.path.dirname(self.container.root.upper)), exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._engine: Engine | None = None

    def run(self, count: int, quiet: float) -> list[float]:
        """Return so many times in ms, each after so many seconds of quiet.

        Raises:
            RuntimeError: /bin/true did not end with status 0.
        """
        return [self._loop.run_until_complete(self._timed(quiet)) for _ in range(count)]

    def _prepare_parent(self) -> None:
        """Make the group above the container's, ready to have children (v2: with controllers passed on to them)."""
        cgroups.make(self._layout.directories(self.cage.pods), parent=True)
        child = self._layout.directories(f"{self.cage.pods}/first")
        cgroups.make(child)
        cgroups.remove(child)

    def close(self) -> None:
        """End the spawner."""
        if self._engine is not None:
            self._loop.run_until_complete(self._engine.close())
        self._loop.close()

    async def _timed(self, quiet: float) -> float:
        if self._engine is None:
            settings = EngineSettings(self._paths, self._layout, self.cage.own)
            self._engine = Engine(settings)
            await self._engine.start()
            self._engine.warm_up(*plan_rehearsal(self._planning))
        await asyncio.sleep(quiet)
        before = time.perf_counter_ns()
        ended = await self._turn(self._engine)
        took = time.perf_counter_ns() - before
        if ended.exit_code:
            raise RuntimeError(f"/bin/true ended with status {ended.exit_code}")
        return took / 1e6

    async def _turn(self, engine: Engine) -> Exit:
        root = self.container.root
        top = os.path.dirname(root.upper)
        for directory, mode in ((top, 0o711), (root.upper, 0o755), (root.work, 0o700)):
            os.mkdir(directory, mode)
        keeper = await engine.start_pod(self.pod)
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        keeper.on_exit = exited.set_result
        for fd in (keeper.files_fd, keeper.netns_fd, keeper.netlink_fd):
            os.close(fd)
        await keeper.start_container(self._frozen)
        ended = await asyncio.wait_for(exited, DEADLINE)
        await keeper.ack(ended.seq)
        await keeper.stop()
        engine.remove_pod(self.pod.pod_id, _group(self.pod, self.cage))
        remove_tree(top)
        return ended


def _group(pod: types.PodPlan, cage: Cage) -> str:
    """The pod's control group as a name, from its first directory."""
    directory = pod.cgroup.directories[0] if pod.cgroup.directories else f"/{cage.name}/none"
    return directory[directory.index(f"/{cage.name}") :]
