"""A runtime and an image store without a kernel, behind the same faces as the real ones: for tests of the server."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from crishim.errors import NotFoundError
from crishim.images.model import (
    Credentials,
    Details,
    FsUsage,
    Image,
    Layer,
    LayerUse,
    Pruned,
    Pulled,
    Pushed,
    Removed,
)
from crishim.images.progress import Item, Report, State
from crishim.network.counters import InterfaceCounters
from crishim.observe import NullObserver
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_exec, admit_sandbox, admit_stop
from crishim.pods.cadvisor import ContainerMetrics, PodMetrics
from crishim.pods.events import Bus, Subscription
from crishim.pods.views import (
    ContainerFilter,
    ContainerState,
    ContainerStats,
    ContainerView,
    CpuStats,
    ExecResult,
    FsStats,
    MemoryStats,
    SandboxFilter,
    SandboxState,
    SandboxStats,
    SandboxView,
)
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ImageConfig,
    ImageSpec,
    Metadata,
    Resources,
    SandboxConfig,
)
from tests.fakes.archives import FakeArchives

NOW = 1_790_000_000_000_000_000
IMAGE_ID = "sha256:" + "ab" * 32
IMAGE = Image(
    id=IMAGE_ID,
    layers=(),
    config=ImageConfig(user="1003:1004"),
    size=1234,
    repo_tags=("docker.io/library/busybox:latest",),
    repo_digests=("docker.io/library/busybox@sha256:" + "cd" * 32,),
)


@dataclass
class FakeCondition:
    kind: str
    status: bool = True
    reason: str = ""
    message: str = ""


def sandbox_view(number: int) -> SandboxView:
    """Return a ready sandbox."""
    return SandboxView(
        id=f"{number:064x}",
        metadata=Metadata(f"pod-{number}", f"uid-{number}", "default", 1),
        state=SandboxState.READY,
        created_at=NOW + number,
        labels={"app": "web", "number": str(number)},
        annotations={"note": "a b"},
        ips=(f"10.0.0.{number}", "fd00::1"),
    )


def container_view(number: int, state: ContainerState = ContainerState.RUNNING) -> ContainerView:
    """Return a container of the sandbox with the same number."""
    metadata = ContainerMetadata("main", 2)
    return ContainerView(
        id=f"c{number:063x}",
        sandbox_id=f"{number:064x}",
        metadata=metadata,
        config=ContainerConfig(metadata, labels={"tier": "front"}, annotations={"note": "c"}),
        image=ImageSpec("docker.io/library/busybox:latest"),
        image_ref=IMAGE.repo_digests[0],
        image_id=IMAGE_ID,
        state=state,
        created_at=NOW + number,
        started_at=NOW + number + 1,
    )


def container_stats(view: ContainerView) -> ContainerStats:
    """Return usage with a figure in every part."""
    return ContainerStats(
        view,
        CpuStats(NOW, 5_000_000_000, 1_500_000),
        MemoryStats(NOW, 1_000_000, 2_000_000, 500_000, 9_000_000, 7, 1),
        FsStats(NOW, "/", 4096, 3),
        None,
        None,
    )


def sandbox_stats(view: SandboxView, containers: Sequence[ContainerView]) -> SandboxStats:
    """Return usage of a sandbox with its containers'."""
    return SandboxStats(
        view,
        CpuStats(NOW, 6_000_000_000),
        MemoryStats(NOW, 1_100_000, 2_100_000, 500_000),
        NOW,
        (InterfaceCounters("eth0", 10, 1, 0, 0, 20, 2, 1, 0), InterfaceCounters("eth1", 1, 0, 2, 0, 3, 0, 4, 0)),
        NOW,
        4,
        None,
        tuple(container_stats(item) for item in containers),
    )


@dataclass
class FakeRuntime:
    """Holds views; remembers calls; `faults` are raised instead of answers."""

    pods: list[SandboxView] = field(default_factory=list)
    inside: list[ContainerView] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    directory: str = "/"
    bus: Bus = field(default_factory=lambda: Bus(NullObserver()))
    queue: int = 8

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.faults:
            raise self.faults[name]

    async def conditions(self) -> Sequence[FakeCondition]:
        return [FakeCondition("RuntimeReady"), FakeCondition("NetworkReady", False, "NoBridge", "the bridge is gone")]

    def verbose_status(self) -> Mapping[str, str]:
        return {"config": '{"stateDir": "/run/crishim"}'}

    def events(self) -> Subscription:
        self._note("events")
        return self.bus.subscribe(self.queue)

    def members(self, sandbox_id: str) -> list[ContainerView]:
        return [view for view in self.inside if view.sandbox_id == sandbox_id]

    def handlers(self) -> Sequence[str]:
        return ("", "test-handler")

    def cgroup_driver(self) -> str:
        return "cgroupfs"

    async def update_pod_cidr(self, text: str) -> None:
        self._note("update_pod_cidr", text)

    async def run_sandbox(self, config: SandboxConfig, handler: str, problems: Problems) -> str:
        admit_sandbox(problems, config, handler, Abilities(handlers=("test-handler",)))
        problems.check()
        self._note("run_sandbox", config, handler)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return "f" * 64

    async def stop_sandbox(self, sandbox_id: str) -> None:
        self._note("stop_sandbox", sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        self._note("remove_sandbox", sandbox_id)

    def sandbox(self, sandbox_id: str) -> SandboxView:
        self._note("sandbox", sandbox_id)
        for view in self.pods:
            if view.id.startswith(sandbox_id):
                return view
        raise NotFoundError(f"no sandbox {sandbox_id}")

    async def sandbox_info(self, sandbox_id: str) -> Mapping[str, str]:
        return {"info": "{}"}

    def sandboxes(self, wanted: SandboxFilter) -> list[SandboxView]:
        self._note("sandboxes", wanted)
        return [view for view in self.pods if wanted.state in {None, view.state}]

    async def create_container(
        self, sandbox_id: str, config: ContainerConfig, sandbox: Metadata | None, problems: Problems
    ) -> str:
        problems.check()
        self._note("create_container", sandbox_id, config, sandbox)
        return "e" * 64

    async def start_container(self, container_id: str) -> None:
        self._note("start_container", container_id)

    async def stop_container(self, container_id: str, timeout: int) -> None:
        problems = Problems()
        admit_stop(problems, timeout)
        problems.check()
        self._note("stop_container", container_id, timeout)

    async def remove_container(self, container_id: str) -> None:
        self._note("remove_container", container_id)

    def container(self, container_id: str) -> ContainerView:
        self._note("container", container_id)
        for view in self.inside:
            if view.id.startswith(container_id):
                return view
        raise NotFoundError(f"no container {container_id}")

    async def container_info(self, container_id: str) -> Mapping[str, str]:
        return {"info": '{"pid": 42}'}

    def containers(self, wanted: ContainerFilter) -> list[ContainerView]:
        self._note("containers", wanted)
        return [view for view in self.inside if wanted.state in {None, view.state}]

    async def update_container(self, container_id: str, resources: Resources, annotations: Mapping[str, str]) -> None:
        self._note("update_container", container_id, resources, annotations)

    async def reopen_log(self, container_id: str) -> None:
        self._note("reopen_log", container_id)

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout: int) -> ExecResult:
        problems = Problems()
        admit_exec(problems, command, timeout)
        problems.check()
        self._note("exec_sync", container_id, command, timeout)
        return ExecResult(b"out", b"err", 3)

    def container_stats(self, container_id: str) -> ContainerStats:
        return container_stats(self.container(container_id))

    def list_container_stats(self, wanted: ContainerFilter) -> Iterator[ContainerStats]:
        return map(container_stats, self.containers(wanted))

    def written(self) -> FsStats:
        return FsStats(NOW, self.directory, 4096, 3)

    def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        return sandbox_stats(self.sandbox(sandbox_id), self.inside)

    def list_sandbox_stats(self, wanted: SandboxFilter) -> Iterator[SandboxStats]:
        for view in self.sandboxes(wanted):
            yield sandbox_stats(view, self.members(view.id))

    async def sandbox_metrics(self) -> Iterator[PodMetrics]:
        return (
            PodMetrics(
                view,
                f"/pods/{view.id}",
                [(("container_last_seen",), 7, NOW)],
                [
                    ContainerMetrics(inner, f"/pods/{view.id}/{inner.id}", [(("container_processes",), 0, NOW)])
                    for inner in self.members(view.id)
                ],
            )
            for view in self.pods
        )


@dataclass
class FakeImages:
    """One image; remembers calls."""

    image: Image = IMAGE
    calls: list[tuple[object, ...]] = field(default_factory=list)
    archives: FakeArchives = field(default_factory=FakeArchives)
    stuck: asyncio.Event | None = None

    async def pull(self, reference: str, credentials: Credentials | None) -> str:
        self.calls.append(("pull", reference, credentials))
        return self.image.id

    def find(self, reference: str) -> Image | None:
        return self.image if reference in {self.image.id, *self.image.repo_tags} else None

    def list(self, reference: str = "") -> list[Image]:
        return [self.image] if not reference or self.find(reference) else []

    async def remove(self, reference: str) -> None:
        self.calls.append(("remove", reference))

    def hold(self, image_id: str, owner: str) -> tuple[str, ...]:
        return ()

    def release(self, owner: str) -> None:
        self.calls.append(("release", owner))

    def fs_usage(self) -> FsUsage:
        return FsUsage("/", 5000, 6, NOW)

    def info(self, image_id: str) -> Mapping[str, str]:
        return {"info": "{}"}

    async def pull_watched(self, reference: str, credentials: Credentials | None, report: Report) -> Pulled:
        self.calls.append(("pull_watched", reference, credentials))
        await report([Item("sha256:1", "layer", State.TRANSFERRING, 5, 9)])
        await report([Item("sha256:1", "layer", State.DONE, 9, 9)])
        if self.stuck is not None:
            try:
                await self.stuck.wait()
            except asyncio.CancelledError:
                self.calls.append(("cancelled",))
                raise
        return Pulled(self.image.id, reference, "sha256:2", cached=False)

    async def push(self, source: str, destination: str, credentials: Credentials | None, report: Report) -> Pushed:
        self.calls.append(("push", source, destination, credentials))
        await report([Item("sha256:1", "layer", State.MOUNTED, 0, 9)])
        return Pushed(destination or source, "sha256:2", 7)

    async def tag(self, source: str, name: str) -> tuple[str, str]:
        self.calls.append(("tag", source, name))
        return self.image.id, name

    def untag(self, text: str, *, force: bool) -> Removed:
        self.calls.append(("untag", text, force))
        return Removed((text,), self.image.id if force else "")

    def details(self, pattern: str, *, dangling: bool) -> Sequence[Details]:
        self.calls.append(("details", pattern, dangling))
        layer = Layer("sha256:1", "sha256:3", 9, "0")
        return [Details(self.image, "sha256:2", 4, "linux/amd64", 1, (LayerUse(layer, 20, 2),))]

    def prune(self, *, unused: bool, dry_run: bool) -> Pruned:
        self.calls.append(("prune", unused, dry_run))
        return Pruned((Removed(self.image.repo_tags, self.image.id),), 1000)


@dataclass
class FakeObserver:
    """Remembers RPCs."""

    started: list[str] = field(default_factory=list)
    finished: list[tuple[str, str]] = field(default_factory=list)

    def rpc_started(self, method: str) -> None:
        self.started.append(method)

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.finished.append((method, code))
