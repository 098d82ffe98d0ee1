"""The face that `pods/` shows to the server: one protocol, implemented by `pods.runtime.Runtime`.

Every method raises only errors of `crishim.errors`. Methods that change the world are safe against a caller that
goes away (they run shielded in a task of their own); a retry with the same request joins the call in flight.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from crishim.pods.cadvisor import PodMetrics
from crishim.pods.events import Subscription
from crishim.pods.views import (
    ContainerFilter,
    ContainerStats,
    ContainerView,
    ExecResult,
    FsStats,
    SandboxFilter,
    SandboxStats,
    SandboxView,
)
from crishim.problems import Problems
from crishim.request import ContainerConfig, Metadata, Resources, SandboxConfig


class Condition(Protocol):
    """One condition of Status: `RuntimeReady` or `NetworkReady`."""

    @property
    def kind(self) -> str:
        """Which condition."""

    @property
    def status(self) -> bool:
        """Whether it holds."""

    @property
    def reason(self) -> str:
        """One word why not."""

    @property
    def message(self) -> str:
        """A sentence why not."""


class RuntimeApi(Protocol):
    """What RuntimeService needs."""

    async def conditions(self) -> Sequence[Condition]:
        """Return RuntimeReady and NetworkReady."""

    def verbose_status(self) -> Mapping[str, str]:
        """Return Status(verbose)'s info: key → JSON text (`config`, with `stateDir`, and `host`)."""

    def events(self) -> Subscription:
        """Subscribe to the life cycle from now on; the caller closes the subscription."""

    def handlers(self) -> Sequence[str]:
        """Return the names of the runtime handlers, the default one's ("") first."""

    def cgroup_driver(self) -> str:
        """Return `cgroupfs` or `systemd`."""

    async def update_pod_cidr(self, text: str) -> None:
        """Give new pods addresses of this range (two with a comma in dual stack), also after a restart; "" is fine."""

    async def run_sandbox(self, config: SandboxConfig, handler: str, problems: Problems) -> str:
        """Create and start a sandbox; return its id."""

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Stop; unknown ids succeed."""

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop and remove with all containers; unknown ids succeed."""

    def sandbox(self, sandbox_id: str) -> SandboxView:
        """Return one sandbox by id or unique prefix; NotFoundError otherwise."""

    async def sandbox_info(self, sandbox_id: str) -> Mapping[str, str]:
        """Return PodSandboxStatus(verbose)'s info: key → JSON text."""

    def members(self, sandbox_id: str) -> Sequence[ContainerView]:
        """Return a sandbox's containers, oldest first; its id may be a unique prefix; NotFoundError otherwise."""

    def sandboxes(self, wanted: SandboxFilter) -> list[SandboxView]:
        """Return the sandboxes that match, newest first."""

    async def create_container(
        self, sandbox_id: str, config: ContainerConfig, sandbox: Metadata | None, problems: Problems
    ) -> str:
        """Create a container; return its id. `sandbox` is whose the request says it is."""

    async def start_container(self, container_id: str) -> None:
        """Start a created container."""

    async def stop_container(self, container_id: str, timeout: int) -> None:  # noqa: ASYNC109  the CRI's grace period
        """Stop with a grace period in seconds; unknown ids succeed."""

    async def remove_container(self, container_id: str) -> None:
        """Remove, killing it first if it runs; unknown ids succeed."""

    def container(self, container_id: str) -> ContainerView:
        """Return one container by id or unique prefix; NotFoundError otherwise."""

    async def container_info(self, container_id: str) -> Mapping[str, str]:
        """Return ContainerStatus(verbose)'s info: key → JSON text (`info`: pid, plan…)."""

    def containers(self, wanted: ContainerFilter) -> list[ContainerView]:
        """Return the containers that match, newest first."""

    async def update_container(self, container_id: str, resources: Resources, annotations: Mapping[str, str]) -> None:
        """Change the cgroup limits; fields that are not given stay as they are."""

    async def reopen_log(self, container_id: str) -> None:
        """Reopen the log file after rotation; returns when the new file exists."""

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout: int) -> ExecResult:  # noqa: ASYNC109
        """Run a command in the container; timeout in seconds, 0 for none; DeadlineExceededError when it passes."""

    def container_stats(self, container_id: str) -> ContainerStats:
        """Return one container's stats."""

    def list_container_stats(self, wanted: ContainerFilter) -> Iterator[ContainerStats]:
        """Yield the stats of running containers that match, read one by one; an odd one never empties the list."""

    def written(self) -> FsStats:
        """Return what all containers have written, as far as it is known, and the directory of their layers."""

    def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """Return one sandbox's stats."""

    def list_sandbox_stats(self, wanted: SandboxFilter) -> Iterator[SandboxStats]:
        """Yield the stats of ready sandboxes that match, read one by one."""

    async def sandbox_metrics(self) -> Iterator[PodMetrics]:
        """Return what yields the metrics of ready sandboxes, read one by one."""
