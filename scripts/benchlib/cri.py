"""The bench's client: the CRI over gRPC, the same code and so the same cost for every runtime.

One synchronous channel per runtime; `Pod` is one sandbox with one container. Requests carry what kubelet sends for an
ordinary container: own network, PID per container, RuntimeDefault seccomp, the default masked and read-only paths, a
memory limit. Out of scope: what is measured.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim._proto.runtime.v1 import api_pb2_grpc as services

OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
)
DEADLINE = 120.0
MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
WAIT = ("/bin/sleep", "1000000")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox and its one container, with what made them."""

    sandbox: str
    container: str
    log: str


class Client:
    """A connection to one runtime's socket."""

    def __init__(self, address: str, image: str, cgroup_parent: str, logs: str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}", options=OPTIONS)
        self.runtime = services.RuntimeServiceStub(self._channel)
        self.images = services.ImageServiceStub(self._channel)
        self._image = image
        self._parent = cgroup_parent
        self._logs = logs

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def version(self) -> str:
        """Return the runtime's name and version."""
        answer = self.runtime.Version(api.VersionRequest(), timeout=DEADLINE)
        return f"{answer.runtime_name} {answer.runtime_version}"

    def wait_ready(self, seconds: float) -> None:
        """Wait until the runtime answers; one that already listens may still say UNAVAILABLE for a moment."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.version()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                return

    def pull(self, reference: str) -> str:
        """Pull an image and return its id."""
        request = api.PullImageRequest(image=api.ImageSpec(image=reference))
        answer: str = self.images.PullImage(request, timeout=600).image_ref
        return answer

    def sandbox_config(self) -> api.PodSandboxConfig:
        """Return the configuration of a new pod; its name is used once."""
        name = f"bench-{next(_numbers)}"
        security = api.LinuxSandboxSecurityContext(
            namespace_options=api.NamespaceOption(network=api.POD, pid=api.CONTAINER, ipc=api.POD),
            seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
        )
        return api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="bench"),
            hostname=name,
            log_directory=os.path.join(self._logs, name),
            dns_config=api.DNSConfig(servers=["10.0.0.10"]),
            linux=api.LinuxPodSandboxConfig(cgroup_parent=self._parent, security_context=security),
        )

    def start(self, command: tuple[str, ...] = WAIT) -> Pod:
        """RunPodSandbox, CreateContainer, StartContainer: what the row pod-start times."""
        config = self.sandbox_config()
        sandbox = self.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config), timeout=DEADLINE).pod_sandbox_id
        container = self.create(sandbox, config, command)
        self.runtime.StartContainer(api.StartContainerRequest(container_id=container), timeout=DEADLINE)
        return Pod(sandbox, container, os.path.join(config.log_directory, "main.log"))

    def create(self, sandbox: str, config: api.PodSandboxConfig, command: tuple[str, ...]) -> str:
        """CreateContainer; return the container's id."""
        security = api.LinuxContainerSecurityContext(
            namespace_options=api.NamespaceOption(network=api.POD, pid=api.CONTAINER, ipc=api.POD),
            masked_paths=MASKED,
            readonly_paths=READONLY,
            seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
        )
        resources = api.LinuxContainerResources(cpu_shares=102, memory_limit_in_bytes=256 << 20, oom_score_adj=500)
        wanted = api.ContainerConfig(
            metadata=api.ContainerMetadata(name="main"),
            image=api.ImageSpec(image=self._image, user_specified_image=self._image),
            command=command[:1],
            args=command[1:],
            log_path="main.log",
            linux=api.LinuxContainerConfig(resources=resources, security_context=security),
        )
        request = api.CreateContainerRequest(pod_sandbox_id=sandbox, config=wanted, sandbox_config=config)
        answer: str = self.runtime.CreateContainer(request, timeout=DEADLINE).container_id
        return answer

    def remove(self, pod: Pod) -> None:
        """StopPodSandbox, RemovePodSandbox: what the row stop-remove times."""
        self.discard(pod.sandbox)

    def discard(self, sandbox: str) -> None:
        """StopPodSandbox, RemovePodSandbox of a sandbox by its id."""
        self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=DEADLINE)
        self.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=DEADLINE)

    def empty(self) -> str:
        """RunPodSandbox; return its id."""
        config = self.sandbox_config()
        answer: str = self.runtime.RunPodSandbox(
            api.RunPodSandboxRequest(config=config), timeout=DEADLINE
        ).pod_sandbox_id
        return answer

    def execute(self, pod: Pod, command: tuple[str, ...]) -> bytes:
        """ExecSync; return stdout.

        Raises:
            RuntimeError: the command did not end with status 0.
        """
        request = api.ExecSyncRequest(container_id=pod.container, cmd=command, timeout=60)
        answer = self.runtime.ExecSync(request, timeout=DEADLINE)
        if answer.exit_code:
            raise RuntimeError(f"exec {command[0]}: status {answer.exit_code}: {answer.stderr[:200]!r}")
        out: bytes = answer.stdout
        return out

    def containers(self) -> int:
        """ListContainers; return how many there are."""
        return len(self.runtime.ListContainers(api.ListContainersRequest(), timeout=DEADLINE).containers)

    def sandboxes(self) -> int:
        """ListPodSandbox; return how many are ready."""
        items = self.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=DEADLINE).items
        return sum(item.state == api.SANDBOX_READY for item in items)

    def stats(self) -> int:
        """ListPodSandboxStats; return how many pods it has figures of."""
        return len(self.runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest(), timeout=DEADLINE).stats)

    def exited(self, pod: Pod) -> bool:
        """Tell whether the pod's container has ended."""
        request = api.ContainerStatusRequest(container_id=pod.container)
        state = self.runtime.ContainerStatus(request, timeout=DEADLINE).status.state
        return bool(state == api.CONTAINER_EXITED)


def wait_listening(address: str, seconds: float, alive: Callable[[], bool]) -> None:
    """Wait until somebody accepts connections on a unix socket.

    Raises:
        TimeoutError: nobody did within `seconds`, or the one who should has ended.
    """
    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(address)
            except OSError:
                time.sleep(0.001)
                continue
            return
    raise TimeoutError(f"nobody listens on {address}" if alive() else "it ended at once")
