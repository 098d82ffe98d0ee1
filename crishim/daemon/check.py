"""The findings of `crishim check`: what this host can, what it lacks, what that means, and what to do about it.

Pure: it judges the kernel's facts (`linux.facts`) and what lies around the instance (`surroundings`). Out of scope:
printing, and the exit status, which is 1 if any finding is an error (`cannot_serve`).

Invariant: every finding that is not `ok` has a remedy. An error means that the daemon cannot serve pods; a warning
that it serves, with the nearest thing that the host allows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from crishim.config.model import Config
from crishim.daemon.surroundings import Surroundings
from crishim.errors import InvalidArgumentError
from crishim.linux import capabilities, rlimits
from crishim.linux.cgroups.details import further_files
from crishim.linux.cgroups.stats import files_per_group
from crishim.linux.facts import HostFacts

OK, WARN, ERROR = "ok", "warn", "error"
MIN_KERNEL = (5, 14)
NEEDED_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FOWNER KILL MKNOD NET_ADMIN SETGID SETPCAP SETUID SYS_ADMIN SYS_CHROOT".split()  # noqa: SIM905  reads better
)
NEEDED_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
LOW_DISK = 2 << 30
_DAEMON_FDS = 200
_KEEPER_FDS = 2  # socket and pidfd
_NO_UPPER = ("overlay", "nfs", "nfs4", "vfat", "fuse", "9p", "virtiofs")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `level` is ok, warn or error, and the remedy is empty only for ok."""

    name: str
    level: str
    detail: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether there is nothing to do."""
        return self.level == OK


def findings(facts: HostFacts, config: Config, around: Surroundings) -> list[Finding]:
    """Return all findings, in the order in which a person should read them."""
    return [
        *_kernel(facts),
        *_groups(facts),
        *_files(facts, around, config),
        *_processes(facts, config),
        *_network(facts, config, around),
        *_security(facts),
        *_tried(around),
    ]


def cannot_serve(found: list[Finding]) -> bool:
    """Tell whether one of the findings is an error."""
    return any(finding.level == ERROR for finding in found)


def pods_for_descriptors(limit: int, facts: HostFacts) -> int:
    """Return for how many pods of one container the daemon's descriptors are enough."""
    group = files_per_group(facts.layout) + further_files(facts.layout) if facts.layout else 0
    return max(limit - _DAEMON_FDS, 0) // (_KEEPER_FDS + 2 * group)


def _kernel(facts: HostFacts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.kernel_version))
    yield _judge(
        "kernel",
        facts.kernel_version >= MIN_KERNEL,
        ERROR,
        f"Linux {facts.kernel}",
        f"Linux {version} is older than {MIN_KERNEL[0]}.{MIN_KERNEL[1]}",
        "install a newer kernel",
    )
    yield _judge(
        "machine",
        facts.machine in {"x86_64", "aarch64"},
        ERROR,
        facts.machine,
        f"{facts.machine} is not supported",
        "use an x86-64 or arm64 machine",
    )
    missing = [name for name in NEEDED_CAPABILITIES if not capabilities.has(facts.effective, name)]
    yield _judge(
        "privileges",
        not missing,
        ERROR,
        "all that the engine needs",
        f"lacks {', '.join(missing)}",
        "run as root with these capabilities",
    )
    absent = [name for name in NEEDED_NAMESPACES if name not in facts.namespaces]
    yield _judge(
        "namespaces",
        not absent,
        ERROR,
        ", ".join(facts.namespaces),
        f"the kernel has no {', '.join(absent)} namespaces",
        "use a kernel with CONFIG_NAMESPACES and all its kinds",
    )


def _groups(facts: HostFacts) -> Iterator[Finding]:
    layout = facts.layout
    if layout is None:
        yield Finding("cgroups", ERROR, "no control groups are mounted", "mount cgroup2 on /sys/fs/cgroup")
        return
    yield Finding("cgroups", OK, f"version {layout.version} ({layout.kind})")
    yield _judge(
        "devices",
        layout.has("devices"),
        ERROR,
        "access can be limited",
        "containers' access to devices cannot be limited",
        "mount the v1 devices controller, or use cgroup v2",
    )
    lacking = [name for name in ("cpu", "memory", "pids", "cpuset") if not layout.has(name)]
    yield _judge(
        "controllers",
        not lacking,
        WARN,
        "cpu, memory, pids, cpuset",
        f"no {', '.join(lacking)}: containers with such limits are refused",
        "enable them on the kernel's command line (cgroup_enable=…), or delegate them to crishim's unit",
    )
    yield _judge(
        "swap limits",
        facts.swap_accounting,
        WARN,
        "groups can limit swap" + ("" if facts.swap_total else " (the host has none)"),
        "groups cannot limit swap: memory limits do not count it",
        "boot with swapaccount=1, or switch swap off",
    )
    yield _judge(
        "huge pages",
        layout.has("hugetlb") or not facts.hugepage_sizes,
        WARN,
        ", ".join(facts.hugepage_sizes) or "the kernel has none",
        "limits of huge pages are left out: no hugetlb controller",
        "mount the hugetlb controller, or delegate it",
    )
    yield _judge(
        "pressure",
        facts.pressure,
        WARN,
        "stall information can be read",
        "statistics come without pressure",
        "boot with psi=1",
    )


def _files(facts: HostFacts, around: Surroundings, config: Config) -> Iterator[Finding]:
    yield _judge(
        "overlay",
        facts.overlay,
        ERROR,
        "overlayfs can be mounted",
        "overlayfs cannot be mounted",
        "load the module (modprobe overlay), or use a kernel with CONFIG_OVERLAY_FS",
    )
    if facts.overlay:
        yield _judge(
            "deep images",
            facts.overlay_lowerdir_plus,
            WARN,
            "any number of layers that the kernel can stack",
            "layers are passed in one page of options: images of more than about 60 layers may be refused",
            "use Linux 6.8 or later",
        )
    kind = around.root_fstype
    yield _judge(
        "root directory",
        kind not in _NO_UPPER and not kind.startswith("fuse."),
        ERROR,
        f"{config.root} is on {kind or 'an unknown file system'}",
        f"{config.root} is on {kind}, which cannot hold the upper layer of an overlay",
        "choose --root on ext4, xfs, btrfs or tmpfs",
    )
    yield _disk("disk", config.root, around.root_free)
    if config.images.path:
        kind = around.images_fstype
        yield _judge(
            "image path",
            kind not in _NO_UPPER and not kind.startswith("fuse."),
            ERROR,
            f"{config.images.path} is on {kind or 'an unknown file system'}",
            f"{config.images.path} is on {kind}, which cannot hold the layers of an overlay",
            "choose images.path on ext4, xfs, btrfs or tmpfs",
        )
        yield _disk("image disk", config.images.path, around.images_free)
    yield _judge(
        "state directory",
        around.state_fstype in {"tmpfs", "ramfs"},
        WARN,
        f"{config.state} is on {around.state_fstype}",
        f"{config.state} is on {around.state_fstype or 'an unknown file system'}, so it survives a reboot: stale "
        "sockets and journals are then found by the boot id alone",
        "choose --state on a tmpfs (mount -t tmpfs -o mode=755 tmpfs DIRECTORY)",
    )


def _disk(name: str, path: str, free: int | None) -> Finding:
    return _judge(
        name,
        free is None or free >= LOW_DISK,
        WARN,
        "unknown" if free is None else f"{free >> 20} MiB free below {path}",
        f"only {(free or 0) >> 20} MiB free below {path}",
        "free some space, or choose another directory",
    )


def _processes(facts: HostFacts, config: Config) -> Iterator[Finding]:
    hard = facts.hard_rlimit(rlimits.NUMBERS["NOFILE"])
    pods = pods_for_descriptors(hard, facts) if hard >= 0 else 0
    yield _judge(
        "descriptors",
        hard < 0 or pods >= 110,
        WARN,
        "no limit" if hard < 0 else f"{hard}, enough for {pods} pods",
        f"{hard} are enough for {pods} pods; kubelet places up to 110",
        "raise LimitNOFILE= of crishim's unit (or ulimit -Hn) to 65536",
    )
    lowered = _lowered_rlimits(facts, config)
    yield _judge(
        "resource limits",
        not lowered,
        WARN,
        "containers get the configured ones",
        f"containers get lower ones than configured: {', '.join(lowered)} (CAP_SYS_RESOURCE is missing)",
        "give the daemon CAP_SYS_RESOURCE, raise its hard limits, or lower runtime.default_rlimits",
    )
    yield _judge(
        "oom_score_adj",
        facts.negative_oom_score_adj,
        WARN,
        "any value can be set",
        "values below the daemon's own become its own, so critical pods are less protected from the OOM killer",
        "give the daemon CAP_SYS_RESOURCE",
    )
    yield _judge(
        "process ids",
        facts.pid_max >= 32768,
        WARN,
        f"up to {facts.pid_max}",
        f"only {facts.pid_max} processes are possible on this host",
        "sysctl -w kernel.pid_max=4194304",
    )
    yield _judge(
        "interpreter",
        facts.memfd_exec,
        WARN,
        "runs from a sealed copy in memory",
        "executable memfds are refused: the spawner runs from a read-only mount only",
        "sysctl -w vm.memfd_noexec=1",
    )


def _lowered_rlimits(facts: HostFacts, config: Config) -> tuple[str, ...]:
    try:
        wanted = rlimits.container(config.runtime.default_rlimits, facts.threads_max)
    except InvalidArgumentError as error:
        return (str(error),)
    return rlimits.clamp(wanted, facts.hard_rlimit, may_raise=facts.may_raise_rlimits)[1]


def _network(facts: HostFacts, config: Config, around: Surroundings) -> Iterator[Finding]:
    if not config.network.enabled:
        yield Finding("network", WARN, "network.enabled is false", "set it to true for pods with their own network")
        return
    yield _judge(
        "nftables",
        facts.nftables,
        ERROR,
        "the kernel answers",
        "the kernel has no nf_tables, or refuses us",
        "load the module (modprobe nf_tables) and run with CAP_NET_ADMIN, or set network.enabled = false",
    )
    wants_v6 = any(":" in subnet for subnet in config.network.subnets)
    yield _judge(
        "ipv6",
        facts.ipv6 or not wants_v6,
        ERROR,
        "on" if facts.ipv6 else "off, and not configured",
        "network.subnets names an IPv6 network, but the host has IPv6 switched off",
        "sysctl -w net.ipv6.conf.all.disable_ipv6=0, or remove the network",
    )
    yield from _needs(around)
    yield _forwarding(around)


def _needs(around: Surroundings) -> Iterator[Finding]:
    """What was tried: one line if all of it works, else one for each thing that does not."""
    if around.lacks is None:
        yield Finding("network needs", WARN, "cannot be tried: no network namespaces", "run as root with CAP_SYS_ADMIN")
    elif not around.lacks:
        needs = "bridge, veth, address translation, connection tracking, loopback routing, pods' own addresses"
        yield Finding("network needs", OK, needs)
    else:
        for lack in around.lacks:
            yield Finding(lack.need, WARN if lack.optional else ERROR, lack.problem, lack.remedy)


def _forwarding(around: Surroundings) -> Finding:
    if around.barriers is None:
        detail = "the kernel's firewall rules cannot be read"
        return Finding("forwarding", WARN, detail, "run as root with CAP_NET_ADMIN")
    names = ", ".join(barrier.name for barrier in around.barriers)
    return _judge(
        "forwarding",
        not around.barriers,
        WARN,
        "no chain keeps pods from the outside",
        f"{names}: drops forwarded packets by default; pods may not reach the outside, nor be reached",
        "; ".join(barrier.remedy for barrier in around.barriers),
    )


def _security(facts: HostFacts) -> Iterator[Finding]:
    yield _judge(
        "seccomp",
        facts.seccomp,
        ERROR,
        "filters can be installed",
        "the kernel has no seccomp filters",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
    missing = [name.removeprefix("CAP_") for name in capabilities.names(capabilities.ALL & ~facts.bounding)]
    yield _judge(
        "capabilities",
        not missing,
        WARN,
        "privileged containers get all",
        f"privileged containers come without {', '.join(missing)}",
        "give the daemon the full bounding set (CapabilityBoundingSet= of its unit)",
    )
    modules = [name for name, active in (("AppArmor", facts.apparmor), ("SELinux", facts.selinux)) if active]
    yield Finding("security modules", OK, ", ".join(modules) or "neither AppArmor nor SELinux is active")
    if facts.apparmor:
        yield Finding(
            "apparmor",
            WARN,
            "no profile is applied: RuntimeDefault is unconfined, a Localhost profile is refused",
            "rely on seccomp, capabilities and masks, which are applied",
        )


def _tried(around: Surroundings) -> Iterator[Finding]:
    """What the engine was made to do; a fault here is the kernel's or ours, and names the call that failed."""
    tries = (
        ("unpacking", around.trial.unpacking, "a layer was unpacked", "a layer cannot be unpacked"),
        ("container", around.trial.container, "a container was run", "a container cannot be run"),
    )
    for name, problem, fine, bad in tries:
        if problem is not None:
            remedy = "see which call the kernel refuses, and why (dmesg); mend that, or report it with this output"
            yield _judge(name, not problem, ERROR, fine, f"{bad}: {problem}", remedy)


def _judge(name: str, good: bool, level: str, fine: str, bad: str, remedy: str) -> Finding:
    return Finding(name, OK, fine) if good else Finding(name, level, bad, remedy)
