"""Container request + image config + host facts → ContainerPlan. Pure: every problem is found before anything acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonpath, normpath, relpath

from crishim.engine.plan import cgroup, mounts, process
from crishim.engine.plan.host import NOTHING, HostView
from crishim.engine.plan.pod import container_group
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import ContainerPlan, DeviceNode, OverlayRoot, StdioPlan
from crishim.linux.cgroups import devices
from crishim.linux.cgroups.limits import lacking
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ImageConfig,
    Mount,
    NamespaceMode,
    ProfileType,
    SandboxConfig,
)

MAX_LAYERS = 500  # fs/overlayfs/params.h, OVL_MAX_STACK


@dataclass(frozen=True, slots=True)
class ContainerInput:
    """All that a container's plan is computed from, besides the host's facts.

    Attributes:
        id: the container's.
        sandbox_id: its pod's.
        sandbox: the pod's request.
        config: the request with the values that hold: host paths resolved, the log file's absolute path, and its
            limits now, which may be an update's.
        image: what its image says.
        layers: absolute paths of the layers, bottom first.
        upper: its read/write layer.
        work: the overlay's working directory beside it.
        volumes: its directories for the image's volumes.
        host: what the host tells of the request.
    """

    id: str
    sandbox_id: str
    sandbox: SandboxConfig
    config: ContainerConfig
    image: ImageConfig
    layers: tuple[str, ...]
    upper: str
    work: str
    volumes: tuple[Mount, ...] = ()
    host: HostView = NOTHING


def plan_container(problems: Problems, wanted: ContainerInput, settings: PlanSettings) -> ContainerPlan:
    """Return a container's plan; with a problem noted it must not be used.

    Args:
        problems: of the request; what host and image tell of it is added.
        wanted: the request and what was found for it.
        settings: of the instance.
    """
    config, host = wanted.config, wanted.host
    group = container_group(wanted.id, wanted.sandbox_id, wanted.sandbox, settings)
    limits = cgroup.limits_of(
        config.resources, pids_limit=settings.pids_limit, devices=_device_rules(config, host.nodes)
    )
    problems.extend(lacking(limits, settings.layout), "config.linux.resources.")
    if len(wanted.layers) > MAX_LAYERS:
        problems.add("config.image", f"has {len(wanted.layers)} layers; the kernel mounts at most {MAX_LAYERS}")
    return ContainerPlan(
        container_id=wanted.id,
        pod_id=wanted.sandbox_id,
        pid=_pid_mode(config),
        cgroup_namespace=True,
        cgroup=cgroup.plan_cgroup(group, limits, settings),
        root=_root(wanted, settings),
        mounts=mounts.plan_mounts(config, host, group, settings, wanted.volumes),
        process=process.plan_process(problems, config, wanted.image, wanted.sandbox, host.profile, settings),
        stdio=StdioPlan(config.log_path, config.stdin, config.stdin_once, config.tty),
        shared=host.local and _shareable(config, settings),
    )


def _shareable(config: ContainerConfig, settings: PlanSettings) -> bool:
    """Tell whether the first process may share the keeper's memory until it execs (`keeper.births`).

    It then is born in the keeper's v2 control group, and to leave that costs more than the sharing saves; a profile of
    the user's may kill it on its last steps; in a shared PID namespace the end of process 1 may; and the keeper must
    not be stopped for a terminal's reader.
    """
    profile = config.security.seccomp
    return (
        settings.layout.unified is None
        and config.security.namespaces.pid is NamespaceMode.CONTAINER
        and not config.tty
        and (profile is None or profile.profile_type is not ProfileType.LOCALHOST)
    )


def _device_rules(config: ContainerConfig, nodes: Sequence[DeviceNode]) -> tuple[devices.DeviceRule, ...]:
    if config.security.privileged:
        return devices.ALL
    own = tuple(devices.DeviceRule(node.kind, node.major, node.minor, node.access) for node in nodes)
    return devices.DEFAULT + own


def _pid_mode(config: ContainerConfig) -> str:
    options = config.security.namespaces
    if options.pid is NamespaceMode.TARGET:
        return f"container:{options.target_id}"
    return {NamespaceMode.POD: "pod", NamespaceMode.CONTAINER: "new", NamespaceMode.NODE: "host"}[options.pid]


def _root(wanted: ContainerInput, settings: PlanSettings) -> OverlayRoot:
    # overlayfs wants a lower layer, also for an image that has none
    layers = [normpath(layer) for layer in wanted.layers or (settings.paths.empty,)]
    base = settings.paths.root
    inside = [relpath(layer, base) if commonpath([layer, base]) == base else layer for layer in layers]
    return OverlayRoot(
        base=base,
        lower=tuple(reversed(inside)),
        upper=wanted.upper,
        work=wanted.work,
        readonly=wanted.config.security.readonly_rootfs,
        append=settings.overlay_append,
        options=("volatile",),
    )
