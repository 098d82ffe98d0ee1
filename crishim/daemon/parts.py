"""The parts of one instance, built from its configuration, started in order, and each ended in the opposite order.

```
 start   engine (spawner) and network ► images ► runtime (adopts, reconciles) ► metrics endpoint ► CRI server
 end     CRI server (calls in flight) ► endpoint ► runtime ► images ► network ► engine ► what is left in the kernel
```
Invariant: whatever was started is ended, also when a later part cannot start, and a part that fails to end does not
keep the others from it. The heavy imports (grpc, protobuf, prometheus-client) come while spawner and bridge come up.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from crishim.clock import monotonic
from crishim.config.model import Config
from crishim.daemon import placement
from crishim.errors import CrishimError, FailedPreconditionError
from crishim.log import get_logger
from crishim.store.store import Store

if TYPE_CHECKING:
    from crishim.engine.client import Engine
    from crishim.engine.plan.planner import Planner
    from crishim.images.service import Images
    from crishim.images.settings import ImageSettings
    from crishim.linux.cgroups.layout import Layout
    from crishim.linux.facts import HostFacts
    from crishim.metrics.metrics import Metrics
    from crishim.pods.ports import Network
    from crishim.pods.runtime import Runtime
    from crishim.server.service import Server

Ready = Callable[[], tuple[bool, str]]
Start = Callable[[], Awaitable[object]]

log = get_logger("crishim.daemon")


class Parts:
    """What serves.

    Args:
        config: of the instance.
        store: open; closed by whoever opened it.
        ready: tells `/readyz` whether the daemon serves, and why not.
    """

    def __init__(self, config: Config, store: Store, ready: Ready) -> None:
        self.config = config
        self.server: Server | None = None
        self._images: Images | None = None
        self._store = store
        self._ready = ready
        self._ends = AsyncExitStack()

    async def start(self) -> None:
        """Start everything; raises a CrishimError that says which part cannot start and why. `end` is due then too."""
        facts = host_facts()
        assert facts.layout is not None
        layout = facts.layout
        engine, network = self._engine(layout), self._network()

        async def start_engine() -> None:
            await engine.start()
            placement.leave_unit(layout, placement.keepers_group(self.config.cgroup_parent))

        early = [self._early("engine", start_engine), self._early("network", network.start)]
        try:
            await asyncio.sleep(0)  # both wait for others from here on: the spawner's process, the kernel
            metrics = self._metrics()
            network.observe(metrics)
            images = self._make_images(engine, metrics)
            planner = self._planner(facts, metrics)
            runtime = self._runtime(facts, engine, images, network, planner, metrics)
            from crishim.server.service import Server

            server = Server(runtime, images, self.config.socket_path, metrics)
            await asyncio.gather(*early)
            self._warm_up(engine, planner)
        finally:
            for task in early:
                task.cancel()
            await asyncio.wait(early)
        await self._begin("images", images.start, images.stop)
        await self._begin("runtime", runtime.start, runtime.close)
        self._watch(metrics, runtime, network)
        await self._serve_metrics(metrics)
        self.server = server

        async def stop() -> None:
            runtime.end_events()
            await server.stop(float(self.config.limits.shutdown_seconds))

        await self._begin("server", server.start, stop)

    async def end(self) -> None:
        """End what was started."""
        await self._ends.aclose()

    def apply_images(self, config: Config) -> None:
        """Take changed settings of images (SIGHUP)."""
        if self._images is not None:
            self._images.reload(image_settings(config))

    def calls(self) -> list[str]:
        """Return one line for each call in flight."""
        return [] if self.server is None else self.server.calls.describe()

    def _early(self, name: str, start: Start) -> "asyncio.Task[None]":
        """Start a part beside the others' imports; its end is pushed by whoever made it."""
        return asyncio.get_running_loop().create_task(self._timed(name, start), name=f"start of {name}")

    async def _begin(self, name: str, start: Start, end: Start) -> None:
        """Start a part; from now on it is ended, even if it stops half-way through its start."""
        self._push(name, end)
        await self._timed(name, start)

    async def _timed(self, name: str, start: Start) -> None:
        began = monotonic()
        await start()
        log.debug("part started", part=name, ms=round((monotonic() - began) * 1000, 1))

    def _push(self, name: str, end: Start) -> None:
        async def guarded() -> None:
            try:
                await end()
            except (CrishimError, OSError) as error:
                log.warning("a part did not end cleanly", part=name, error=str(error))
            except Exception:
                log.exception("a part did not end cleanly", part=name)

        self._ends.push_async_callback(guarded)

    def _engine(self, layout: "Layout") -> "Engine":
        from crishim.engine.client import Engine, EngineSettings

        parent = self.config.cgroup_parent
        group = placement.keepers_group(parent)
        deadline = float(self.config.runtime.keeper_seconds)
        engine = Engine(EngineSettings(self.config.paths, layout, group, greeting_deadline=deadline))

        async def close() -> None:
            await engine.close()
            if self._without_pods():
                placement.unmount_namespaces(self.config.paths)
                placement.remove(layout, group, parent)

        self._push("engine", close)
        return engine

    def _metrics(self) -> "Metrics":
        from crishim.metrics.metrics import Metrics

        return Metrics()

    async def _serve_metrics(self, metrics: "Metrics") -> None:
        from crishim.metrics.endpoint import Endpoint

        endpoint = Endpoint(metrics, self.config.metrics_listen, self._ready, names=self.config.metrics_hosts)
        await self._begin("metrics", endpoint.start, endpoint.close)

    def _make_images(self, engine: "Engine", metrics: "Metrics") -> "Images":
        from crishim.images.service import Images

        self._images = Images(self._store, self.config.paths, image_settings(self.config), engine, metrics)
        return self._images

    def _network(self) -> "Network":
        settings = self.config.network
        if not settings.enabled:
            from crishim.daemon.disabled import DisabledNetwork

            return DisabledNetwork()
        from crishim.daemon.networking import build

        network = build(settings, self._store, self.config.root)
        self._push("network", lambda: network.shutdown(remove=self._without_pods()))
        return network

    def _planner(self, facts: "HostFacts", metrics: "Metrics") -> "Planner":
        from crishim.daemon.planning import plan_settings
        from crishim.engine.plan.planner import Planner

        return Planner(plan_settings(self.config, facts, metrics))

    def _warm_up(self, engine: "Engine", planner: "Planner") -> None:
        from crishim.engine.plan.rehearsal import plan_rehearsal

        engine.warm_up(*plan_rehearsal(planner.settings))

    def _runtime(
        self,
        facts: "HostFacts",
        engine: "Engine",
        images: "Images",
        network: "Network",
        planner: "Planner",
        metrics: "Metrics",
    ) -> "Runtime":
        from crishim.pods.admission.abilities import Abilities
        from crishim.pods.runtime import Runtime

        abilities = Abilities(apparmor=facts.apparmor, selinux=facts.selinux)
        return Runtime(
            self.config, self._store, engine, images, network, planner, metrics, abilities=abilities, host=facts
        )

    def _watch(self, metrics: "Metrics", runtime: "Runtime", network: "Network") -> None:
        """Tell where the gauges are asked for that each scrape asks for."""
        from crishim.metrics import catalog

        metrics.watch(catalog.PODS, runtime.pods_by_state)
        metrics.watch(catalog.CONTAINERS, runtime.containers_by_state)
        metrics.watch(catalog.KEEPERS, runtime.keepers)
        metrics.watch(catalog.NETWORK_ADDRESSES, network.addresses)

    def _without_pods(self) -> bool:
        """Whether no keeper is left: then nothing in the kernel has to survive the daemon."""
        try:
            return not os.listdir(self.config.paths.pods)
        except FileNotFoundError:
            return True


def host_facts() -> "HostFacts":
    """Return what the host can do; raises FailedPreconditionError where that is not enough to serve."""
    from crishim.linux.facts import probe

    facts = probe()
    if facts.layout is None:
        raise FailedPreconditionError(
            "no cgroup hierarchy with controllers is mounted: mount cgroup2 on /sys/fs/cgroup, see 'crishim check'"
        )
    return facts


def image_settings(config: Config) -> "ImageSettings":
    """Return the settings of images that a configuration gives."""
    from crishim.images.settings import ImageSettings

    images = config.images
    return ImageSettings(
        pinned=images.pinned,
        certs_d=images.certs_d,
        parallel_pulls=images.parallel_pulls,
        parallel_layers=images.parallel_layers,
        stall_seconds=images.stall_seconds,
        max_layer_bytes=images.max_layer_bytes,
        max_ratio=images.max_ratio,
    )
