"""The plan of the spawner's rehearsal: an ordinary pod with one container, in a directory of its own. Pure.

See `engine.rehearsal` for what it is good for. What differs from a real pod's plan: the pod makes no namespaces (the
keeper is the spawner itself), and all its files are below `Paths.rehearsal`, the root's layers with them.
"""

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
    namespaces = NamespaceOptions(pid=NamespaceMode.CONTAINER)
    profile = SecurityProfile() if settings.seccomp is not None else None
    sandbox = SandboxConfig(
        metadata=Metadata(POD), security=SandboxSecurity(namespaces=namespaces, seccomp=profile), hostname=POD
    )
    resources = Resources(cpu_shares=2, memory_limit_in_bytes=256 << 20, oom_score_adj=1000)
    config = ContainerConfig(
        metadata=ContainerMetadata(POD),
        command=(PROGRAM,),
        resources=resources,
        security=ContainerSecurity(
            namespaces=namespaces, masked_paths=_MASKED, readonly_paths=_READONLY, seccomp=profile
        ),
    )
    directory = settings.paths.pod(POD)
    wanted = ContainerInput(
        id=POD,
        sandbox_id=POD,
        sandbox=sandbox,
        config=config,
        image=ImageConfig(env=("PATH=/bin",)),
        layers=(f"{directory}/{LAYER}",),
        mounts=(),
        log_path=f"{directory}/log",
        resources=resources,
        upper=f"{directory}/upper",
        work=f"{directory}/work",
    )
    problems = Problems()
    container = plan_container(problems, wanted, frozenset(), (), settings, local=True)
    problems.check()
    root = OverlayRoot(
        base=directory,
        lower=(LAYER,),
        upper=wanted.upper,
        work=wanted.work,
        readonly=False,
        append=settings.overlay_append,  # and not volatile: such a layer is mounted once
    )
    pod = replace(plan_pod(POD, sandbox, settings), namespaces=(), pin="", hostname="")
    return pod, replace(container, root=root, shared=True)
