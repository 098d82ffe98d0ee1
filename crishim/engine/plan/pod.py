"""Pod request → PodPlan: which namespaces the keeper makes, where its control group is, which sysctls it sets. Pure."""

from crishim.constants import SHM_SIZE
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import CgroupPlan, PodPlan
from crishim.request import NamespaceMode, SandboxConfig

PING_GROUP_RANGE = "net/ipv4/ping_group_range"


def plan_pod(pod_id: str, config: SandboxConfig, settings: PlanSettings) -> PodPlan:
    """Return the plan of a pod's keeper.

    Args:
        pod_id: the new id.
        config: the request, validated: its sysctls are the pod's own.
        settings: of the instance.
    """
    options = config.security.namespaces
    own_network = options.network is not NamespaceMode.NODE
    own_ipc = options.ipc is not NamespaceMode.NODE
    wanted = (("net", own_network), ("ipc", own_ipc), ("uts", own_network))
    namespaces = tuple(name for name, own in wanted if own)
    return PodPlan(
        pod_id=pod_id,
        directory=settings.paths.pod(pod_id),
        empty=settings.paths.empty,
        namespaces=namespaces,
        pin=settings.paths.pinned_netns(pod_id) if own_network else "",
        hostname=pod_hostname(config, settings) if own_network else "",
        cgroup=CgroupPlan(settings.layout.version, settings.layout.directories(pod_group(pod_id, config, settings))),
        sysctls=_sysctls(config, settings),
        shm_size=SHM_SIZE if own_ipc else 0,
    )


def pod_hostname(config: SandboxConfig, settings: PlanSettings) -> str:
    """Return the name that a pod's containers have: by uname(2), in /etc/hostname and in HOSTNAME.

    A pod of the host's network has the host's name: what it serves is reached under that name.
    """
    own = config.security.namespaces.network is not NamespaceMode.NODE
    return config.hostname if own and config.hostname else settings.hostname


def pod_group(pod_id: str, config: SandboxConfig, settings: PlanSettings) -> str:
    """Return the name of the pod's control group: below the one that kubelet made for the pod, or the instance's."""
    parent = (config.cgroup_parent or settings.cgroup_parent).strip("/")
    return f"/{parent}/{pod_id}"


def container_group(container_id: str, pod_id: str, config: SandboxConfig, settings: PlanSettings) -> str:
    """Return the name of a container's control group, below its pod's."""
    return f"{pod_group(pod_id, config, settings)}/{container_id}"


def _sysctls(config: SandboxConfig, settings: PlanSettings) -> dict[str, str]:
    """Return the defaults, where the network is the pod's own, and what the request says instead or besides."""
    options = config.security.namespaces
    defaults = {} if options.network is NamespaceMode.NODE else dict(settings.sysctls)
    if options.userns is not None and options.userns.mode is NamespaceMode.POD:
        defaults.pop(PING_GROUP_RANGE, None)  # takes only groups that the user namespace maps
    return defaults | {sysctl_path(key): value for key, value in config.sysctls.items()}


def sysctl_path(key: str) -> str:
    """Return a sysctl's path below /proc/sys; in the form with slashes a dot belongs to a name (sysctl(8))."""
    return key if "/" in key else key.replace(".", "/")
