"""The planner of one instance.

It looks up the few host facts that a request names (device nodes, kinds of host paths), and hands them to the pure
functions.
"""

import os
from collections.abc import Sequence

from crishim.engine.plan.container import ContainerInput, plan_container
from crishim.engine.plan.pod import container_group, plan_pod, pod_group
from crishim.engine.plan.process import plan_exec
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import ContainerPlan, DeviceNode, ExecPlan, PodPlan
from crishim.linux import devices
from crishim.linux.filesystems import is_local
from crishim.problems import Problems
from crishim.request import ContainerConfig, SandboxConfig


class Planner:
    """Plans pods, containers and execs."""

    def __init__(self, settings: PlanSettings) -> None:
        self.settings = settings
        self.layout = settings.layout
        self.swap_accounting = settings.swap

    def pod_group(self, pod_id: str, config: SandboxConfig) -> str:
        """Return the name of a pod's control group, from the hierarchy's root."""
        return pod_group(pod_id, config, self.settings)

    def container_group(self, container_id: str, pod_id: str, config: SandboxConfig) -> str:
        """Return the name of a container's control group; `config` is its sandbox's."""
        return container_group(container_id, pod_id, config, self.settings)

    def pod(self, pod_id: str, config: SandboxConfig) -> PodPlan:
        """Return the pod's plan; see `plan_pod`."""
        return plan_pod(pod_id, config, self.settings)

    def container(self, problems: Problems, wanted: ContainerInput) -> ContainerPlan:
        """Return the container's plan; with a problem noted it must not be used."""
        directories = frozenset(mount.host_path for mount in wanted.mounts if os.path.isdir(mount.host_path))
        local = all(is_local(mount.host_path) for mount in wanted.mounts)
        return plan_container(
            problems, wanted, directories, _nodes(problems, wanted.config), self.settings, local=local
        )

    def exec(self, plan: ContainerPlan, command: Sequence[str]) -> ExecPlan:
        """Return the plan of an exec in the container of `plan`, without a terminal."""
        return plan_exec(plan, command)


def _nodes(problems: Problems, config: ContainerConfig) -> tuple[DeviceNode, ...]:
    """Return the device nodes that a request asks for; a privileged container gets all of the host's."""
    found: dict[str, DeviceNode] = {}
    if config.security.privileged:
        for device in devices.host_devices():
            found[device.path] = _node(device, device.path, "rwm")
    for number, wanted in enumerate(config.devices):
        inside = os.path.normpath(wanted.container_path).removeprefix("/dev/")
        try:
            listed = devices.lookup(wanted.host_path)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            problems.add(f"config.devices[{number}].host_path", f"{wanted.host_path}: {reason}")
            continue
        for device in listed:
            path = f"{inside}/{device.path}" if device.path else inside
            found[path] = _node(device, path, wanted.permissions)
    return tuple(found.values())


def _node(device: devices.Device, path: str, access: str) -> DeviceNode:
    return DeviceNode(path, device.kind, device.major, device.minor, device.mode, device.uid, device.gid, access)
