"""The plan of an ordinary pod with one container that ends at once, and the spawner's rehearsal of it. Pure.

See `engine.rehearsal` for what that is good for; `crishim check` runs the pod itself. What differs in a rehearsal: the
pod makes no namespaces (the keeper is the spawner itself), and all its files are below `Paths.rehearsal`, the root's
layers with them.
"""

import os
from dataclasses import replace

from crishim.engine.plan.container import ContainerInput, plan_container
from crishim.engine.plan.pod import plan_pod
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import ContainerPlan, OverlayRoot, PodPlan
from crishim.paths import Paths
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    ImageConfig,
    Metadata,
    NamespaceMode,
    NamespaceOptions,
    Resources,
    SandboxConfig,
    SandboxSecurity,
    SecurityProfile,
)

POD = "rehearsal"
LAYER = "layer"
PROGRAM = "/exit"
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def plan_rehearsal(settings: PlanSettings) -> tuple[PodPlan, ContainerPlan]:
    """Return the pod's and the container's plan; the container's program is `PROGRAM` in the layer `LAYER`."""
    settings = replace(settings, paths=Paths(settings.paths.root, settings.paths.rehearsal))
    directory = settings.paths.pod(POD)
    pod, container = plan_small(settings, f"{directory}/{LAYER}", directory)
    root = OverlayRoot(
        base=directory,
        lower=(LAYER,),
        upper=f"{directory}/upper",
        work=f"{directory}/work",
        readonly=False,
        append=settings.overlay_append,  # and not volatile: such a layer is mounted once
    )
    return _without_effects(pod), replace(container, root=root, shared=True)


def _without_effects(pod: PodPlan) -> PodPlan:
    """Return the plan of a pod that makes nothing outside its directory and group: the spawner itself is its keeper.

    Only what is named here is taken over, so what a pod's plan gains some day does not happen to the host.
    """
    return PodPlan(
        pod_id=pod.pod_id,
        directory=pod.directory,
        empty=pod.empty,
        namespaces=(),
        pin="",
        hostname="",
        cgroup=pod.cgroup,
        shm_size=pod.shm_size,
    )


def small_pod(settings: PlanSettings) -> SandboxConfig:
    """Return the request of such a pod; `POD` is its name and id."""
    profile = SecurityProfile() if settings.seccomp is not None else None
    namespaces = NamespaceOptions(pid=NamespaceMode.CONTAINER)
    return SandboxConfig(
        metadata=Metadata(POD), security=SandboxSecurity(namespaces=namespaces, seccomp=profile), hostname=POD
    )


def plan_small(settings: PlanSettings, layer: str, directory: str) -> tuple[PodPlan, ContainerPlan]:
    """Return the plans of such a pod and its container.

    Args:
        settings: of the instance.
        layer: directory of the only layer, with the program `PROGRAM`.
        directory: `upper`, `work` and `log` are below it.
    """
    sandbox = small_pod(settings)
    namespaces = NamespaceOptions(pid=NamespaceMode.CONTAINER)
    profile = sandbox.security.seccomp
    config = ContainerConfig(
        metadata=ContainerMetadata(POD),
        command=(PROGRAM,),
        log_path=f"{os.path.realpath(directory)}/log",
        resources=Resources(cpu_shares=2, memory_limit_in_bytes=256 << 20, oom_score_adj=1000),
        security=ContainerSecurity(
            namespaces=namespaces, masked_paths=_MASKED, readonly_paths=_READONLY, seccomp=profile
        ),
    )
    wanted = ContainerInput(
        id=POD,
        sandbox_id=POD,
        sandbox=sandbox,
        config=config,
        image=ImageConfig(env=("PATH=/bin",)),
        layers=(layer,),
        upper=f"{directory}/upper",
        work=f"{directory}/work",
    )
    problems = Problems()
    container = plan_container(problems, wanted, settings)
    problems.check()
    return plan_pod(POD, sandbox, settings), container
