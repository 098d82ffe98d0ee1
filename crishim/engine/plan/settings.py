"""What planning needs to know besides the request: the host's abilities and the instance's settings, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.linux.arch import Arch
from crishim.linux.arch import native as native_arch
from crishim.linux.cgroups.layout import Layout
from crishim.linux.rlimits import Rlimit
from crishim.linux.seccomp.profile import Profile
from crishim.paths import Paths


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Facts and settings of one instance on one host.

    Args:
        paths: of the instance.
        layout: control groups of the host.
        cgroup_parent: group above the pods' groups, where the request names none.
        kernel: version, like (6, 18).
        bounding: capabilities that no container can exceed (64-bit mask).
        rlimits: default limits of every container, already clamped to what this host allows.
        oom_score_floor: lowest oom_score_adj that can be set here.
        overlay_append: the kernel takes overlay layers one by one.
        swap: swap is accounted, so limits on it can be set.
        pids_limit: processes allowed in each container; 0: not limited.
        hostname: the host's own name.
        sysctls: of every pod with a network of its own, where its request says nothing: path below /proc/sys → value.
        seccomp: what RuntimeDefault stands for; None where the kernel has no filters.
        arch: of the machine.
    """

    paths: Paths
    layout: Layout
    cgroup_parent: str
    kernel: tuple[int, int]
    bounding: int
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_floor: int = -1000
    overlay_append: bool = True
    swap: bool = True
    pids_limit: int = 0
    sysctls: Mapping[str, str] = field(default_factory=dict)
    seccomp: Profile | None = None
    arch: Arch = field(default_factory=native_arch)
    hostname: str = ""
