"""A planner whose plans hold just what the tests look at; its control groups lie in a plain directory."""

import os
from collections.abc import Sequence

from crishim.engine.plan.container import ContainerInput
from crishim.engine.plan.types import (
    CapabilityPlan,
    CgroupPlan,
    ContainerPlan,
    ExecPlan,
    OverlayRoot,
    PodPlan,
    ProcessPlan,
    StdioPlan,
    UserPlan,
)
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.paths import Paths
from crishim.problems import Problems
from crishim.request import SandboxConfig
from tests.fakes.faults import Faults


class FakePlanner:
    """Implements `pods.ports.Planner`."""

    def __init__(self, faults: Faults, paths: Paths, groups: str) -> None:
        self.faults = faults
        self.layout = Layout(2, (), Hierarchy(groups, ("cpu", "memory", "pids", "cpuset")))
        self.swap_accounting = False
        self._paths = paths

    def pod_group(self, pod_id: str, config: SandboxConfig) -> str:
        return f"{config.cgroup_parent or '/crishim'}/{pod_id}"

    def container_group(self, container_id: str, pod_id: str, config: SandboxConfig) -> str:
        return f"{self.pod_group(pod_id, config)}/{container_id}"

    def pod_hostname(self, config: SandboxConfig) -> str:
        return config.hostname or os.uname().nodename

    def pod(self, pod_id: str, config: SandboxConfig) -> PodPlan:
        self.faults.step("planner.pod")
        group = CgroupPlan(2, self.layout.directories(self.pod_group(pod_id, config)))
        pin = self._paths.pinned_netns(pod_id)
        return PodPlan(pod_id, self._paths.pod(pod_id), self._paths.empty, ("net",), pin, config.hostname, group)

    def container(self, problems: Problems, wanted: ContainerInput) -> ContainerPlan:
        self.faults.step("planner.container")
        group = self.container_group(wanted.id, wanted.sandbox_id, wanted.sandbox)
        argv = (*wanted.config.command, *wanted.config.args) or wanted.image.cmd
        return ContainerPlan(
            container_id=wanted.id,
            pod_id=wanted.sandbox_id,
            pid="new",
            cgroup_namespace=True,
            cgroup=CgroupPlan(2, self.layout.directories(group)),
            root=OverlayRoot("/", wanted.layers, wanted.upper, wanted.work, readonly=False),
            mounts=(),
            process=_process(argv),
            stdio=StdioPlan(log_path=wanted.config.log_path),
        )

    def exec(self, plan: ContainerPlan, command: Sequence[str]) -> ExecPlan:
        self.faults.step("planner.exec")
        return ExecPlan(plan.container_id, _process(tuple(command)), plan.cgroup)


def _process(argv: tuple[str, ...]) -> ProcessPlan:
    return ProcessPlan(
        argv=argv,
        env=(),
        cwd="/",
        user=UserPlan(),
        capabilities=CapabilityPlan(0, 0),
        no_new_privs=False,
        seccomp=b"\x00" * 64,
    )
