"""What the planner needs to know of this instance on this host: from the configuration and the facts to its settings.

Where the host lacks an ability, the nearest allowed value goes into the settings and the observer is told. What
isolates is never weakened here: a profile that cannot be read is an error.
"""

import os
from collections.abc import Sequence

from crishim.config.model import Config
from crishim.engine.plan.pod import PING_GROUP_RANGE, sysctl_path
from crishim.engine.plan.settings import PlanSettings
from crishim.errors import FailedPreconditionError
from crishim.linux import rlimits
from crishim.linux.facts import HostFacts
from crishim.linux.seccomp.default import default_profile
from crishim.linux.seccomp.profile import Profile, load_profile
from crishim.observe import Observer

LOWEST_OOM_SCORE_ADJ = -1000
QUIET = {
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    "net/ipv6/conf/default/addr_gen_mode": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
}
"""So that no neighbour gives a pod addresses and routes (ip-sysctl): set before there is an interface, each that comes
takes the defaults. The link-local address is made of the hardware address, whatever the host's own default is: the
embedded network knows a pod by it."""


def plan_settings(config: Config, facts: HostFacts, observer: Observer) -> PlanSettings:
    """Return the planner's settings.

    Raises:
        FailedPreconditionError: the host has no control groups.
        InvalidArgumentError, NotFoundError, UnimplementedError: runtime.seccomp_profile cannot be used.
    """
    if facts.layout is None:
        raise FailedPreconditionError("no control groups are mounted: see 'crishim check'")
    wanted = rlimits.container(config.runtime.default_rlimits, facts.threads_max)
    limits, lowered = rlimits.clamp(wanted, facts.hard_rlimit, may_raise=facts.may_raise_rlimits)
    if lowered:
        observer.degraded("rlimits")
    return PlanSettings(
        paths=config.paths,
        layout=facts.layout,
        hostname=os.uname().nodename,
        cgroup_parent=config.cgroup_parent,
        kernel=facts.kernel_version,
        bounding=facts.bounding,
        rlimits=limits,
        oom_score_floor=_oom_floor(facts, observer),
        overlay_append=facts.overlay_lowerdir_plus,
        swap=facts.swap_accounting,
        pids_limit=config.runtime.pids_limit,
        seccomp=_profile(config) if facts.seccomp else None,
        sysctls=pod_sysctls(config.network.pod_sysctls, observer),
    )


def pod_sysctls(wanted: Sequence[str], observer: Observer) -> dict[str, str]:
    """Return what every pod with a network of its own gets, by path; what this kernel has not is left out."""
    given = {sysctl_path(key): value for key, _, value in (text.partition("=") for text in wanted)}
    absent = {path for path in given if not os.path.isfile(f"/proc/sys/{path}")}
    if PING_GROUP_RANGE in given and not _maps_all_groups():
        absent.add(PING_GROUP_RANGE)  # the kernel refuses groups that are not mapped (EINVAL)
    if absent:
        observer.degraded("pod_sysctls")
    quiet = {path: value for path, value in QUIET.items() if os.path.isfile(f"/proc/sys/{path}")}
    return quiet | {path: value for path, value in given.items() if path not in absent}


def _maps_all_groups() -> bool:
    """Tell whether this process may name every group: it is in no user namespace (user_namespaces(7))."""
    with open("/proc/self/gid_map", encoding="ascii") as file:
        return file.read().split()[:3] == ["0", "0", "4294967295"]


def _oom_floor(facts: HostFacts, observer: Observer) -> int:
    """Return the lowest oom_score_adj that a container can get: without CAP_SYS_RESOURCE the daemon's own (proc(5))."""
    if facts.negative_oom_score_adj:
        return LOWEST_OOM_SCORE_ADJ
    observer.degraded("oom_score_adj")
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


def _profile(config: Config) -> Profile:
    path = config.runtime.seccomp_profile
    return load_profile(path) if path else default_profile()
