"""The planner of one instance: the pure functions with its settings."""

from collections.abc import Sequence

from crishim.engine.plan.container import ContainerInput, plan_container
from crishim.engine.plan.pod import container_group, plan_pod, pod_group, pod_hostname
from crishim.engine.plan.process import plan_exec
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import ContainerPlan, ExecPlan, PodPlan
from crishim.problems import Problems
from crishim.request import SandboxConfig


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

    def pod_hostname(self, config: SandboxConfig) -> str:
        """Return the name that a pod's containers have."""
        return pod_hostname(config, self.settings)

    def pod(self, pod_id: str, config: SandboxConfig) -> PodPlan:
        """Return the pod's plan; see `plan_pod`."""
        return plan_pod(pod_id, config, self.settings)

    def container(self, problems: Problems, wanted: ContainerInput) -> ContainerPlan:
        """Return the container's plan; with a problem noted it must not be used."""
        return plan_container(problems, wanted, self.settings)

    def exec(self, plan: ContainerPlan, command: Sequence[str]) -> ExecPlan:
        """Return the plan of an exec in the container of `plan`, without a terminal."""
        return plan_exec(plan, command)
