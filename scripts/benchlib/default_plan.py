"""The default container's plan, for the engine rows: crishim's own planner asked for /bin/true with nothing special.

Two things differ from a pod of the daemon's, so that the engine is compared with what crun and the floor do too: the
network namespace is not pinned, and the pod has no control group beside the container's (its parent is there before).
The files that a pod shares (/etc/hosts and so on) are the same for all turns.
"""

import os
from dataclasses import replace

from crishim import request
from crishim.engine.plan import types
from crishim.engine.plan.container import ContainerInput
from crishim.engine.plan.planner import Planner
from crishim.engine.plan.settings import PlanSettings
from crishim.linux import facts, rlimits
from crishim.linux.cgroups.layout import Layout
from crishim.linux.seccomp.default import default_profile
from crishim.paths import Paths
from crishim.problems import Problems
from scripts.benchlib.cri import MASKED, READONLY

POD = "b" * 64
CONTAINER = "c" * 64
SHARED = ("hosts", "hostname", "resolv.conf")


def make(settings: PlanSettings, layer: str) -> tuple[types.PodPlan, types.ContainerPlan]:
    """Return the plans of the pod and of its container.

    Args:
        settings: of the instance and host; its control group parent is what the container's group stands in.
        layer: absolute path of the image's unpacked layer.
    """
    planner = Planner(settings)
    namespaces = request.NamespaceOptions(pid=request.NamespaceMode.CONTAINER)
    sandbox = request.SandboxConfig(
        metadata=request.Metadata("bench", "bench", "bench"),
        hostname="bench",
        security=request.SandboxSecurity(namespaces=namespaces, seccomp=request.SecurityProfile()),
    )
    pod = planner.pod(POD, sandbox)
    plan = planner.container(Problems(), _input(settings.paths, sandbox, layer))
    pod = replace(pod, pin="", cgroup=types.CgroupPlan(settings.layout.version, ()))
    plan = _in_group(plan, settings.layout, f"{settings.cgroup_parent}/{CONTAINER}")
    return pod, _with_files(plan, settings.paths.root)


def host_settings(paths: Paths, layout: Layout, parent: str) -> PlanSettings:
    """Return the settings with this host's facts, as the daemon would find them."""
    host = facts.probe()
    limits, _ = rlimits.clamp(
        rlimits.container(rlimits.DEFAULT, host.threads_max), host.hard_rlimit, may_raise=host.may_raise_rlimits
    )
    return PlanSettings(
        paths=paths,
        layout=layout,
        cgroup_parent=parent,
        kernel=host.kernel_version,
        bounding=host.bounding,
        rlimits=limits,
        overlay_append=host.overlay_lowerdir_plus,
        swap=host.swap_accounting,
        pids_limit=1024,
        seccomp=default_profile(),
    )


def _input(paths: Paths, sandbox: request.SandboxConfig, layer: str) -> ContainerInput:
    resources = request.Resources(cpu_shares=102, memory_limit_in_bytes=256 << 20, oom_score_adj=500)
    config = request.ContainerConfig(
        metadata=request.ContainerMetadata("main"),
        command=("/bin/true",),
        resources=resources,
        security=request.ContainerSecurity(
            namespaces=sandbox.security.namespaces,
            masked_paths=MASKED,
            readonly_paths=READONLY,
            seccomp=request.SecurityProfile(),
        ),
    )
    top = paths.container(CONTAINER)
    return ContainerInput(
        id=CONTAINER,
        sandbox_id=POD,
        sandbox=sandbox,
        config=config,
        image=request.ImageConfig(env=("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)),
        layers=(layer,),
        upper=f"{top}/upper",
        work=f"{top}/work",
    )


def _in_group(plan: types.ContainerPlan, layout: Layout, group: str) -> types.ContainerPlan:
    """Move the plan's control group up, out of the pod's, wherever the plan names it."""
    moves = dict(zip(plan.cgroup.directories, layout.directories(group), strict=True))
    writes = tuple(replace(write, directory=moves[write.directory]) for write in plan.cgroup.writes)
    mounts = tuple(
        replace(mount, hierarchies=tuple((name, moves[place]) for name, place in mount.hierarchies))
        if isinstance(mount, types.CgroupView)
        else mount
        for mount in plan.mounts
    )
    cgroup = replace(plan.cgroup, directories=tuple(moves.values()), writes=writes)
    return replace(plan, cgroup=cgroup, mounts=mounts)


def _with_files(plan: types.ContainerPlan, directory: str) -> types.ContainerPlan:
    """Let the pod's files come from a place that outlives the turn."""
    for name in SHARED:
        with open(os.path.join(directory, name), "w", encoding="ascii") as file:
            file.write("127.0.0.1 localhost\n")
    mounts = tuple(
        types.Bind(os.path.join(directory, mount.name), mount.target, directory=False, recursive=False)
        if isinstance(mount, types.PodFile)
        else mount
        for mount in plan.mounts
    )
    return replace(plan, mounts=mounts)
