"""RuntimeService: each RPC converts, calls `pods.api.RuntimeApi`, converts back; errors pass to the interceptors.

Out of scope: everything that decides. Peculiarities of the CRI stand where they are handled: in `convert/`, or here
RPC by RPC.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

from crishim import clock
from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.api import RuntimeApi
from crishim.pods.views import ContainerFilter, SandboxFilter
from crishim.problems import Problems
from crishim.server.convert import container, metrics, pods, resources, runtime, sandbox, stats, status
from crishim.server.convert.fields import required
from crishim.server.convert.rows import Rows
from crishim.server.methods import Sender
from crishim.server.parts import stream

_METRICS_AT_ONCE = 16
"""Pods whose metrics are made before other calls get their turn."""


class RuntimeService:
    """The servicer; method names are the RPCs' in snake case (`methods.py`)."""

    def __init__(self, api: RuntimeApi) -> None:
        self._api = api
        self._sandboxes = Rows(status.sandbox_row)
        self._containers = Rows(status.container_row)
        self._stats = stats.StatsEncoder()
        self._events = pods.EventEncoder()
        self._metrics = metrics.MetricsEncoder()

    # --- the runtime itself -------------------------------------------------------------------
    async def version(self, _request: pb.VersionRequest) -> pb.VersionResponse:
        """The caller's own version is not judged: kubelet and crictl send different ones."""
        return runtime.version()

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        """Kubelet asks every few seconds."""
        info = self._api.verbose_status() if request.verbose else {}
        return runtime.status(await self._api.conditions(), self._api.handlers(), info)

    async def runtime_config(self, _request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """Kubelet takes its cgroup driver from here."""
        return runtime.runtime_config(self._api.cgroup_driver())

    async def update_runtime_config(self, request: pb.UpdateRuntimeConfigRequest) -> pb.UpdateRuntimeConfigResponse:
        """Kubelet tells the node's pod CIDR; an empty one means that nothing of it is to change."""
        await self._api.update_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return pb.UpdateRuntimeConfigResponse()

    # --- sandboxes ----------------------------------------------------------------------------
    async def run_pod_sandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """Answers only when the sandbox is READY."""
        problems = Problems()
        config = sandbox.config(problems, required(request, "config"))
        made = await self._api.run_sandbox(config, request.runtime_handler, problems)
        return pb.RunPodSandboxResponse(pod_sandbox_id=made)

    async def stop_pod_sandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        """Unknown ids succeed."""
        await self._api.stop_sandbox(required(request, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        """Unknown ids succeed."""
        await self._api.remove_sandbox(required(request, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse:
        """NotFound for what is not there; with the containers' statuses, as the events have them."""
        view = self._api.sandbox(required(request, "pod_sandbox_id"))
        inside = self._api.members(view.id)
        now = clock.now()
        info = await self._api.sandbox_info(view.id) if request.verbose else {}
        return pods.status_answer(view, inside, now, info)

    async def list_pod_sandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        """Every second from kubelet: rows are encoded once per view."""
        return b"".join(self._sandbox_rows(request.filter))

    async def stream_pod_sandboxes(self, request: pb.StreamPodSandboxesRequest, send: Sender) -> None:
        """ListPodSandbox in parts."""
        await stream(self._sandbox_rows(request.filter), send)

    def _sandbox_rows(self, given: pb.PodSandboxFilter) -> Iterator[bytes]:
        wanted = sandbox.wanted(given)
        return self._sandboxes.rows(self._api.sandboxes(wanted), whole=wanted == SandboxFilter())

    # --- containers ---------------------------------------------------------------------------
    async def create_container(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        """The sandbox's configuration comes along for runtimes that keep no state; here only whose it is counts."""
        pod = required(request, "pod_sandbox_id")
        problems = Problems()
        config = container.config(problems, required(request, "config"))
        given = sandbox.metadata(request.sandbox_config.metadata) if request.HasField("sandbox_config") else None
        made = await self._api.create_container(pod, config, given, problems)
        return pb.CreateContainerResponse(container_id=made)

    async def start_container(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """The log file exists when this returns."""
        await self._api.start_container(required(request, "container_id"))
        return pb.StartContainerResponse()

    async def stop_container(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """Unknown ids succeed."""
        await self._api.stop_container(required(request, "container_id"), request.timeout)
        return pb.StopContainerResponse()

    async def remove_container(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        """Unknown ids succeed."""
        await self._api.remove_container(required(request, "container_id"))
        return pb.RemoveContainerResponse()

    async def list_containers(self, request: pb.ListContainersRequest) -> bytes:
        """Every second from kubelet: rows are encoded once per view."""
        return b"".join(self._container_rows(request.filter))

    async def stream_containers(self, request: pb.StreamContainersRequest, send: Sender) -> None:
        """ListContainers in parts."""
        await stream(self._container_rows(request.filter), send)

    def _container_rows(self, given: pb.ContainerFilter) -> Iterator[bytes]:
        wanted = container.wanted(given)
        return self._containers.rows(self._api.containers(wanted), whole=wanted == ContainerFilter())

    async def container_status(self, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse:
        """NotFound for what is not there."""
        view = self._api.container(required(request, "container_id"))
        info = await self._api.container_info(view.id) if request.verbose else {}
        return pb.ContainerStatusResponse(status=status.container_status(view), info=info)

    async def update_container_resources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """0 and "" leave a limit as it is."""
        wanted = resources.from_update(request)
        await self._api.update_container(required(request, "container_id"), wanted, dict(request.annotations))
        return pb.UpdateContainerResourcesResponse()

    async def reopen_container_log(self, request: pb.ReopenContainerLogRequest) -> pb.ReopenContainerLogResponse:
        """An error for a container that does not run: no file must appear then."""
        await self._api.reopen_log(required(request, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def exec_sync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """DeadlineExceeded is kubelet's probe timeout; a non-zero exit is an answer."""
        wanted = required(request, "container_id"), tuple(request.cmd), request.timeout
        result = await self._api.exec_sync(*wanted)
        return container.exec_answer(result)

    # --- events -------------------------------------------------------------------------------
    async def get_container_events(self, _request: pb.GetEventsRequest, send: Sender) -> None:
        """The client is subscribed when it gets the call's head, so that it can list from then on and miss nothing."""
        subscription = self._api.events()
        try:
            with self._events.listener():
                await send.begin()
                async for event in subscription:
                    await _unless(subscription.ended, send(self._events.encode(event)))
        finally:
            subscription.close()

    # --- usage --------------------------------------------------------------------------------
    async def container_stats(self, request: pb.ContainerStatsRequest) -> bytes:
        """NotFound for what is not there."""
        return self._stats.container_answer(self._api.container_stats(required(request, "container_id")))

    async def list_container_stats(self, request: pb.ListContainerStatsRequest) -> bytes:
        """Running containers only."""
        return b"".join(self._container_stats(request.filter))

    async def stream_container_stats(self, request: pb.StreamContainerStatsRequest, send: Sender) -> None:
        """ListContainerStats in parts; each figure is read when its part is made."""
        await stream(self._container_stats(request.filter), send)

    def _container_stats(self, given: pb.ContainerStatsFilter) -> Iterator[bytes]:
        wanted = container.wanted_stats(given)
        return self._stats.containers(self._api.list_container_stats(wanted), whole=wanted == ContainerFilter())

    async def pod_sandbox_stats(self, request: pb.PodSandboxStatsRequest) -> bytes:
        """Kubelet asks with an empty id at start and expects an error, which `required` gives."""
        return self._stats.sandbox_answer(self._api.sandbox_stats(required(request, "pod_sandbox_id")))

    async def list_pod_sandbox_stats(self, request: pb.ListPodSandboxStatsRequest) -> bytes:
        """Kubelet's source for the pods' figures."""
        return b"".join(self._sandbox_stats(request.filter))

    async def stream_pod_sandbox_stats(self, request: pb.StreamPodSandboxStatsRequest, send: Sender) -> None:
        """ListPodSandboxStats in parts; each figure is read when its part is made."""
        await stream(self._sandbox_stats(request.filter), send)

    def _sandbox_stats(self, given: pb.PodSandboxStatsFilter) -> Iterator[bytes]:
        wanted = sandbox.wanted_stats(given)
        return self._stats.sandboxes(self._api.list_sandbox_stats(wanted), whole=wanted == SandboxFilter())

    async def list_metric_descriptors(
        self, _request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """Kubelet asks once, at its start, and drops what it finds no descriptor for later."""
        return metrics.descriptors()

    async def list_pod_sandbox_metrics(self, _request: pb.ListPodSandboxMetricsRequest) -> bytes:
        """Kubelet's source for /metrics/cadvisor."""
        rows = []
        for row in self._metrics.pods(await self._api.sandbox_metrics()):
            rows.append(row)
            if len(rows) % _METRICS_AT_ONCE == 0:
                await asyncio.sleep(0)  # other calls come in between
        return b"".join(rows)

    async def stream_pod_sandbox_metrics(self, _request: pb.StreamPodSandboxMetricsRequest, send: Sender) -> None:
        """ListPodSandboxMetrics in parts; each figure is read when its part is made."""
        await stream(self._metrics.pods(await self._api.sandbox_metrics()), send)


async def _unless(ended: "asyncio.Future[None]", sending: Coroutine[Any, Any, None]) -> None:
    """Send, but stop waiting for a client that does not read once there is nothing more to send."""
    task = asyncio.get_running_loop().create_task(sending, name="send an event")
    try:
        await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
