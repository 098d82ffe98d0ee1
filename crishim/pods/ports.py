"""What `pods/` needs of the engine, the network, the planner and the cgroups: protocols, and nothing else.

`crishim.engine.client`, `crishim.network.chosen` and `engine.plan.planner` satisfy them; `tests/fakes` has stand-ins
that pass the same tests. Times are nanoseconds since the epoch, ids are CRI ids, signal numbers the kernel's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from crishim.engine.capture import Pool
from crishim.engine.plan.container import ContainerInput
from crishim.engine.plan.types import ContainerPlan, ExecPlan, PodPlan
from crishim.linux.cgroups.layout import Layout
from crishim.network.model import NetworkApi
from crishim.pods.views import InterfaceStats
from crishim.problems import Problems
from crishim.request import (
    ResolvedUser,
    SandboxConfig,
)


class Started(Protocol):
    """What is known of a container that runs."""

    @property
    def pid(self) -> int:
        """Process id on the host."""

    @property
    def start_time(self) -> int:
        """Start time of the process in clock ticks since boot (proc_pid_stat(5), field 22)."""

    @property
    def started_at(self) -> int:
        """When its program started."""

    @property
    def user(self) -> ResolvedUser | None:
        """The ids it runs with, as found in the finished root."""


class Exit(Protocol):
    """One entry of a keeper's journal: a container ended."""

    @property
    def seq(self) -> int:
        """Number of the entry, to be acknowledged after the commit."""

    @property
    def container_id(self) -> str:
        """Which container."""

    @property
    def exit_code(self) -> int:
        """Exit status, or 128 + signal."""

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel's OOM killer killed something in the container's cgroup."""

    @property
    def finished_at(self) -> int:
        """When it ended."""


class Keeper(Protocol):
    """The process that keeps one pod: see `crishim.engine.client.Keeper`.

    `running` and `exits` are what it said when it was met: containers that run, and journal entries that no daemon
    has acknowledged. The fds are -1 but for a new keeper, which hands them over once; their taker closes them.
    """

    pid: int
    start_time: int
    files_fd: int
    netns_fd: int
    netlink_fd: int
    on_exit: Callable[[Any], object] | None  # Any: the engine's own Exit class satisfies Exit
    on_lost: Callable[[], object] | None

    @property
    def running(self) -> Mapping[str, Started]:
        """Containers that ran when the keeper was met, by id."""

    @property
    def exits(self) -> Sequence[Exit]:
        """Journal entries that no daemon had acknowledged then, oldest first."""

    async def start_container(self, plan: bytes) -> Started:
        """Start a container by its frozen plan (`codec.frozen`); `StartError` says which step failed."""

    async def signal(self, container_id: str, signum: int) -> None:
        """Send a signal to the container's first process."""

    async def kill(self, container_id: str) -> None:
        """SIGKILL everything in the container's cgroup, thawed first."""

    async def exec_sync(
        self,
        container_id: str,
        plan: ExecPlan,
        timeout: float,  # noqa: ASYNC109  enforced by the keeper
        limit: int,
        pool: Pool | None = None,
    ) -> tuple[bytes, bytes, int]:
        """Run a planned exec; timeout in seconds (0: none); `limit` and `pool` bound the output that is kept."""

    async def reopen_log(self, container_id: str) -> None:
        """Open the log file anew; return when the new file exists."""

    async def stop(self) -> None:
        """End the pod: the keeper leaves, its namespaces go."""

    def give_up(self) -> None:
        """SIGKILL a keeper that does not answer; it is lost from now on."""

    def detach(self) -> None:
        """Let go of the keeper without ending it."""

    async def ack(self, seq: int) -> None:
        """Journal entries up to `seq` are in the store."""


class Engine(Protocol):
    """What makes and finds keepers: see `crishim.engine.client.Engine`."""

    async def start_pod(self, plan: PodPlan) -> Keeper:
        """Fork a keeper with the pod's namespaces and cgroup; on failure nothing is left."""

    async def adopt(self, pod_id: str) -> Keeper | None:
        """Take over the keeper of a pod that was started by an earlier daemon; None if none answers."""

    def journal(self, pod_id: str) -> Sequence[Exit]:
        """Return what a keeper that is dead had journalled and no daemon acknowledged, oldest first."""

    def remove_pod(self, pod_id: str, group: str) -> None:
        """Remove what a pod without keeper has in the kernel and below `state`; blocks, is idempotent.

        Raises:
            OSError: something is still in use.
        """


class Network(NetworkApi, Protocol):
    """The network, with the counters that stats need."""

    def interface_stats(self) -> Mapping[str, InterfaceStats]:
        """Return each pod's default interface by pod id."""


class Planner(Protocol):
    """The pure half of the engine, and the names of control groups."""

    layout: Layout
    swap_accounting: bool

    def pod_group(self, pod_id: str, config: SandboxConfig) -> str:
        """Return the name of a pod's control group, from the hierarchy's root."""

    def container_group(self, container_id: str, pod_id: str, config: SandboxConfig) -> str:
        """Return the name of a container's control group; `config` is its sandbox's."""

    def pod_hostname(self, config: SandboxConfig) -> str:
        """Return the name that a pod's containers have."""

    def pod(self, pod_id: str, config: SandboxConfig) -> PodPlan:
        """Return the pod's plan."""

    def container(self, problems: Problems, wanted: ContainerInput) -> ContainerPlan:
        """Return the container's plan; with a problem noted it must not be used."""

    def exec(self, plan: ContainerPlan, command: Sequence[str]) -> ExecPlan:
        """Return the plan of an exec in the container of `plan`, without a terminal."""
