"""The runtime: what the server calls, each call with its flight, its lookup and its filter.

Calls that change the world run in tasks of their own (`flight`): a client that goes away changes nothing, a retry
joins. Reads answer from memory. Stop and remove of what does not exist succeed (CRI), everything else about it is
NotFound.

Out of scope: protobuf (server), how things are done (the modules beside this one).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from crishim import clock
from crishim.config.model import Config
from crishim.engine.capture import Pool
from crishim.errors import FailedPreconditionError
from crishim.images.model import ImagesApi
from crishim.linux.cgroups.stats import Readers
from crishim.network.plan import plan_pod_cidr
from crishim.observe import Observer
from crishim.pods import containers, disk, execs, info, keepers, reconcile, recover, sandboxes, stopping, updates
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_container, admit_exec, admit_sandbox, admit_stop
from crishim.pods.cadvisor import PodMetrics
from crishim.pods.context import Context
from crishim.pods.events import Bus, Subscription
from crishim.pods.layers import ContainerLayers
from crishim.pods.objects import Container, Sandbox
from crishim.pods.ports import Engine, Network, Planner
from crishim.pods.records import container_name, sandbox_name
from crishim.pods.recover import Table
from crishim.pods.registry import Registry, matches
from crishim.pods.states import Stage
from crishim.pods.stats import Stats
from crishim.pods.usage import Usage
from crishim.pods.views import (
    ContainerFilter,
    ContainerState,
    ContainerStats,
    ContainerView,
    ExecResult,
    FsStats,
    SandboxFilter,
    SandboxState,
    SandboxStats,
    SandboxView,
)
from crishim.problems import Problems
from crishim.request import ContainerConfig, Metadata, Resources, SandboxConfig

State = TypeVar("State", SandboxState, ContainerState)

POD_CIDR_KEY = "network.pod_cidr"
"""The store's value with the subnets of the last pod CIDR, a list of texts."""


@dataclass(frozen=True, slots=True)
class RuntimeCondition:
    """One condition of Status."""

    kind: str
    status: bool
    reason: str = ""
    message: str = ""


class Values(Protocol):
    """Small values of the instance that survive the daemon, as JSON."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value; None removes it."""


class Tables(Protocol):
    """The part of the store that is used here."""

    @property
    def sandboxes(self) -> Table:
        """Rows of sandboxes."""

    @property
    def containers(self) -> Table:
        """Rows of containers."""

    @property
    def values(self) -> Values:
        """Settings of the instance itself."""


class Runtime:
    """Implements `pods.api.RuntimeApi`.

    Args:
        config: of the instance.
        store: its `sandboxes` and `containers` tables are used.
        engine: started; makes and finds keepers.
        images: the image store.
        network: the pods' network, started.
        planner: plans, and what the host can do.
        observer: counts and times.
        abilities: which security modules the host has.
        host: facts of the host for verbose status; any dataclass.
        boot_id: of this boot; for tests.
    """

    def __init__(
        self,
        config: Config,
        store: Tables,
        engine: Engine,
        images: ImagesApi,
        network: Network,
        planner: Planner,
        observer: Observer,
        *,
        abilities: Abilities | None = None,
        host: object = None,
        boot_id: str = "",
    ) -> None:
        paths = config.paths
        layers = ContainerLayers(paths)
        self._store = store
        self._host = host
        self._started = False
        self._context = Context(
            config=config,
            paths=paths,
            registry=Registry(store.sandboxes, store.containers),
            engine=engine,
            images=images,
            network=network,
            planner=planner,
            observer=observer,
            layers=layers,
            stats=Stats(Readers(planner.layout), planner, network, Usage(layers.written)),
            bus=Bus(observer),
            abilities=replace(abilities or Abilities(), handlers=config.runtime.handlers),
            boot_id=boot_id or clock.boot_id(),
            outputs=Pool(config.runtime.exec_output_total),
        )

    async def start(self) -> None:
        """Bring the store's rows back to life, take keepers over, remove what nobody owns."""
        self._context.layers.start()
        recover.load(self._context, self._store.sandboxes, self._store.containers)
        await recover.adopt_all(self._context)
        await reconcile.reconcile(self._context)
        self._context.stats.watch(lambda: self._context.registry.containers)
        self._started = True

    async def close(self) -> None:
        """Finish what is in flight, within `limits.shutdown_seconds`; pods go on without the daemon."""
        context = self._context
        self._started = False
        patience = float(context.config.limits.shutdown_seconds)
        await context.makes.drain(patience)
        await context.ends.drain(patience)
        await context.drain()
        for sandbox in context.registry.sandboxes:
            if sandbox.keeper is not None:
                sandbox.keeper.detach()
                sandbox.keeper = None
        context.bus.close()
        context.stats.close()
        await context.layers.drain()

    def events(self) -> Subscription:
        """Subscribe to the life cycle from now on; `close` the subscription at the end."""
        return self._context.bus.subscribe()

    def end_events(self) -> None:
        """End all subscriptions: they would last as long as the daemon that is to end."""
        self._context.bus.close()

    # --- gauges: how many of what there are now, by the values of their labels ------------------

    def pods_by_state(self) -> Mapping[tuple[str, ...], int]:
        """Return how many sandboxes are in each state, by the state's name."""
        return _by_state((sandbox.view.state for sandbox in self._shown()), SandboxState)

    def containers_by_state(self) -> Mapping[tuple[str, ...], int]:
        """Return how many containers are in each state, by the state's name."""
        return _by_state((c.status.state for c in self._context.registry.containers), ContainerState)

    def keepers(self) -> Mapping[tuple[str, ...], int]:
        """Return how many keepers the daemon is connected to."""
        return {(): sum(sandbox.keeper is not None for sandbox in self._context.registry.sandboxes)}

    # --- the runtime itself -------------------------------------------------------------------

    async def conditions(self) -> Sequence[RuntimeCondition]:
        """Return RuntimeReady and NetworkReady."""
        await self._context.network.refresh()
        ready, reason, message = self._context.network.ready()
        full = disk.problem(self._context.paths)
        if not self._started:
            runtime = RuntimeCondition("RuntimeReady", False, "Starting", "the state of the last daemon is being read")
        elif full:
            runtime = RuntimeCondition("RuntimeReady", False, "DiskFull", full)
        else:
            runtime = RuntimeCondition("RuntimeReady", True)
        return (runtime, RuntimeCondition("NetworkReady", ready, reason, message))

    def verbose_status(self) -> Mapping[str, str]:
        """Return Status(verbose)'s info."""
        return info.runtime_info(self._context.config, self._host)

    def handlers(self) -> Sequence[str]:
        """Return the names of the runtime handlers, the default one's ("") first."""
        return ("", *self._context.abilities.handlers)

    def cgroup_driver(self) -> str:
        """Return `cgroupfs` or `systemd`."""
        return self._context.config.cgroup_driver

    async def update_pod_cidr(self, text: str) -> None:
        """Give new pods addresses of this range, also after a restart; "" changes nothing."""
        context = self._context
        subnets = tuple(subnet.text for subnet in plan_pod_cidr(text))

        async def use() -> None:
            values = self._store.values
            before = values.get(POD_CIDR_KEY)
            values.set(POD_CIDR_KEY, list(subnets))  # first: a record that cannot be written changes nothing
            try:
                await context.network.use_pod_cidr(subnets)
            except BaseException:
                values.set(POD_CIDR_KEY, before)
                raise

        if subnets:
            await context.ends.run("update of the pod CIDR", subnets, use)

    # --- sandboxes ----------------------------------------------------------------------------

    async def run_sandbox(self, config: SandboxConfig, handler: str, problems: Problems | None = None) -> str:
        """Create and start a sandbox; return its id."""
        context = self._context
        found = Problems() if problems is None else problems
        admit_sandbox(found, config, handler, context.abilities)
        found.check()
        name = sandbox_name(config.metadata)
        return await context.makes.run(name, (config, handler), lambda: sandboxes.run(context, config, handler))

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Stop; unknown ids succeed."""
        sandbox = self._context.registry.find_sandbox(sandbox_id)
        if sandbox is not None:
            await sandboxes.stop_once(self._context, sandbox)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop and remove with all containers; unknown ids succeed."""
        context = self._context
        sandbox = context.registry.find_sandbox(sandbox_id)
        if sandbox is not None:
            await context.ends.run(f"remove {sandbox.id}", None, lambda: sandboxes.remove(context, sandbox))

    def sandbox(self, sandbox_id: str) -> SandboxView:
        """Return one sandbox by id or unique prefix; NotFoundError otherwise."""
        return self._context.registry.sandbox(sandbox_id).view

    async def sandbox_info(self, sandbox_id: str) -> Mapping[str, str]:
        """Return PodSandboxStatus(verbose)'s info."""
        return await info.sandbox_info(self._context, self._context.registry.sandbox(sandbox_id))

    def members(self, sandbox_id: str) -> Sequence[ContainerView]:
        """Return a sandbox's containers, oldest first."""
        return [container.view for container in self._context.registry.sandbox(sandbox_id).containers.values()]

    def sandboxes(self, wanted: SandboxFilter) -> list[SandboxView]:
        """Return the sandboxes that match, newest first."""
        return [sandbox.view for sandbox in self._sandboxes(wanted)]

    def _shown(self) -> list[Sandbox]:
        return [s for s in self._context.registry.sandboxes.newest() if s.status.stage is not Stage.CREATING]

    def _sandboxes(self, wanted: SandboxFilter) -> list[Sandbox]:
        found = self._shown()
        if wanted.id:
            found = [s for s in found if s.id.startswith(wanted.id)]
        if wanted.state is not None:
            found = [s for s in found if s.view.state is wanted.state]
        if wanted.labels:
            found = [s for s in found if matches(wanted.labels, s.spec.config.labels)]
        return found

    # --- containers ---------------------------------------------------------------------------

    async def create_container(
        self,
        sandbox_id: str,
        config: ContainerConfig,
        sandbox: Metadata | None = None,
        problems: Problems | None = None,
    ) -> str:
        """Create a container; return its id.

        The sandbox's configuration in the request repeats what RunPodSandbox was told; what was told then counts.
        """
        context = self._context
        home = context.registry.sandbox(sandbox_id)
        if sandbox is not None and sandbox_name(sandbox) != home.name:
            raise FailedPreconditionError(
                f"sandbox_config: is that of {sandbox_name(sandbox)}, but sandbox {home.id} is {home.name}"
            )
        found = Problems() if problems is None else problems
        admit_container(found, config, home.spec.config, context.abilities)
        name = container_name(home.id, config)
        return await context.makes.run(name, config, lambda: containers.create(context, home, config, found))

    async def start_container(self, container_id: str) -> None:
        """Start a created container."""
        context = self._context
        container = context.registry.containers.get(container_id)

        async def start() -> str:
            await containers.start(context, container)
            return container.id

        await context.makes.run(f"start {container.id}", None, start)

    async def stop_container(self, container_id: str, timeout: int) -> None:  # noqa: ASYNC109  the CRI's grace period
        """Stop with a grace period in seconds; unknown ids succeed."""
        context = self._context
        problems = Problems()
        admit_stop(problems, timeout)
        problems.check()
        container = context.registry.containers.find(container_id)
        if container is None:
            return
        await keepers.settle(context, container.sandbox)
        if container.sandbox.keeper is None:
            await containers.end(context, container)
        else:
            await stopping.stop(container, timeout)

    async def remove_container(self, container_id: str) -> None:
        """Remove, killing it first if it runs; unknown ids succeed."""
        context = self._context
        container = context.registry.containers.find(container_id)
        if container is not None:
            await context.ends.run(f"remove {container.id}", None, lambda: containers.remove(context, container))

    def container(self, container_id: str) -> ContainerView:
        """Return one container by id or unique prefix; NotFoundError otherwise."""
        return self._context.registry.containers.get(container_id).view

    async def container_info(self, container_id: str) -> Mapping[str, str]:
        """Return ContainerStatus(verbose)'s info."""
        return await info.container_info(self._context, self._context.registry.containers.get(container_id))

    def containers(self, wanted: ContainerFilter) -> list[ContainerView]:
        """Return the containers that match, newest first."""
        return [container.view for container in self._containers(wanted)]

    def _containers(self, wanted: ContainerFilter) -> list[Container]:
        found = list(self._context.registry.containers.newest())
        if wanted.id:
            found = [c for c in found if c.id.startswith(wanted.id)]
        if wanted.sandbox_id:
            found = [c for c in found if c.spec.sandbox_id.startswith(wanted.sandbox_id)]
        if wanted.state is not None:
            found = [c for c in found if c.status.state is wanted.state]
        if wanted.labels:
            found = [c for c in found if matches(wanted.labels, c.spec.config.labels)]
        return found

    async def update_container(
        self,
        container_id: str,
        resources: Resources,
        annotations: Mapping[str, str],  # noqa: ARG002  part of the call; see below
    ) -> None:
        """Change the cgroup limits; fields that are not given stay as they are.

        `annotations` are for runtimes with plugins; nothing here reads them, and the container's own stay.
        """
        await updates.update(self._context, self._context.registry.containers.get(container_id), resources)

    async def reopen_log(self, container_id: str) -> None:
        """Reopen the log file after rotation; returns when the new file exists."""
        container = self._context.registry.containers.get(container_id)
        if container.status.state is not ContainerState.RUNNING:
            state = container.status.state.name
            raise FailedPreconditionError(f"container {container.id} is {state}: only a running one writes a log")
        await container.sandbox.meet()
        await container.sandbox.live_keeper().reopen_log(container.id)

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout: int) -> ExecResult:  # noqa: ASYNC109
        """Run a command in the container; timeout in seconds, 0 for none."""
        problems = Problems()
        admit_exec(problems, command, timeout)
        problems.check()
        container = self._context.registry.containers.get(container_id)
        return await execs.exec_sync(self._context, container, command, timeout)

    # --- stats --------------------------------------------------------------------------------

    def container_stats(self, container_id: str) -> ContainerStats:
        """Return one container's stats."""
        return self._context.stats.container(self._context.registry.containers.get(container_id))

    def list_container_stats(self, wanted: ContainerFilter) -> Iterator[ContainerStats]:
        """Yield the stats of running containers that match; one that went since the first was read is left out."""
        for container in self._containers(wanted):
            if container.running:
                yield self._context.stats.container(container)

    def written(self) -> FsStats:
        """Return what all containers have written, as far as it is known, and the directory of their layers."""
        context = self._context
        return context.stats.written((c.id for c in context.registry.containers), context.paths.containers)

    def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """Return one sandbox's stats."""
        stats = self._context.stats
        return stats.sandbox(self._context.registry.sandbox(sandbox_id), stats.interfaces())

    def list_sandbox_stats(self, wanted: SandboxFilter) -> Iterator[SandboxStats]:
        """Yield the stats of ready sandboxes that match; one that went since the first was read is left out."""
        stats = self._context.stats
        interfaces = stats.interfaces()
        for sandbox in self._sandboxes(wanted):
            if sandbox.ready:
                yield stats.sandbox(sandbox, interfaces)

    async def sandbox_metrics(self) -> Iterator[PodMetrics]:
        """Return what yields the metrics of ready sandboxes, read one by one."""
        context = self._context
        ready = [sandbox for sandbox in self._shown() if sandbox.ready]
        return await context.stats.metrics(ready, context.paths.containers)


def _by_state(found: Iterable[State], kind: type[State]) -> Mapping[tuple[str, ...], int]:
    counts = Counter(found)
    return {(state.name,): counts[state] for state in kind}
