"""What this host is able to do, found once at the daemon's start: the second input of every plan.

`HostFacts` is plain data and goes through `crishim.codec`, so a test gives a planner any host it likes. Out of scope:
judging a fact (`daemon/check`) and what changes while the daemon runs (addresses, free memory, disks).

Invariants: importing this module touches nothing; `probe` leaves nothing behind and never raises: what cannot be
found out counts as absent.

Sources: proc(5), sysfs(5), cgroups(7), capabilities(7), memfd_create(2), the kernel's filesystems/overlayfs.rst,
netlink(7), linux/netfilter/nf_tables.h.
"""

import os
import platform
import re
import resource
from dataclasses import dataclass

from crishim.linux import capabilities, probes
from crishim.linux.cgroups.layout import Layout, detect
from crishim.linux.rlimits import INFINITY, NUMBERS

_NO_NUMBERS: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host, as the daemon's process sees it. Sizes in bytes.

    Args:
        kernel: release, like `6.18.0-1-amd64`.
        machine: as uname(2) has it.
        layout: control groups; None if there are none.
        bounding: capabilities that no container can exceed.
        effective: the daemon's own capabilities.
        lsms: active Linux security modules, as far as they can be read.
        seccomp: filters can be installed.
        overlay: overlayfs can be mounted through the new mount API.
        overlay_lowerdir_plus: its lower layers can be given one by one (`lowerdir+`, no one-page limit).
        idmapped_mounts: file systems can be mounted with mapped ids; judged by the kernel's version (overlay: 5.19).
        recursive_readonly: mount_setattr(2) with AT_RECURSIVE; judged by the version (5.12).
        user_namespaces: how many may be made; 0 is none.
        memfd_exec: a memfd may be executed.
        swap_accounting: groups can limit swap.
        swap_total: size of all swap areas.
        hard_rlimits: hard limit in force by RLIMIT number; -1 is none.
        negative_oom_score_adj: values below the daemon's own can be set.
        cpus: online processors.
        memory_total: RAM.
        hugepage_sizes: in the CRI's form, like `2MB`.
        ipv6: switched on.
        nftables: the kernel answers to nf_tables requests.
        pid_max: highest process id.
        threads_max: most threads at once.
        root_shared: the mount of `/` propagates to its peers.
        pressure: pressure stall information can be read.
        namespaces: kinds that the kernel has, as in /proc/self/ns.
    """

    kernel: str
    machine: str
    layout: Layout | None = None
    bounding: int = 0
    effective: int = 0
    lsms: tuple[str, ...] = ()
    seccomp: bool = False
    overlay: bool = False
    overlay_lowerdir_plus: bool = False
    idmapped_mounts: bool = False
    recursive_readonly: bool = False
    user_namespaces: int = 0
    memfd_exec: bool = False
    swap_accounting: bool = False
    swap_total: int = 0
    hard_rlimits: tuple[tuple[int, int], ...] = ()
    negative_oom_score_adj: bool = False
    cpus: int = 1
    memory_total: int = 0
    hugepage_sizes: tuple[str, ...] = ()
    ipv6: bool = False
    nftables: bool = False
    pid_max: int = 32768
    threads_max: int = 32768
    root_shared: bool = False
    pressure: bool = False
    namespaces: tuple[str, ...] = ()

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Return the first two numbers of the release."""
        return parse_version(self.kernel)

    @property
    def may_raise_rlimits(self) -> bool:
        """Tell whether hard resource limits can be raised (CAP_SYS_RESOURCE)."""
        return capabilities.has(self.effective, "SYS_RESOURCE")

    @property
    def apparmor(self) -> bool:
        """Tell whether AppArmor is active."""
        return "apparmor" in self.lsms

    @property
    def selinux(self) -> bool:
        """Tell whether SELinux is active."""
        return "selinux" in self.lsms

    def hard_rlimit(self, kind: int) -> int:
        """Return the hard limit in force of an RLIMIT number; -1 is none."""
        return dict(self.hard_rlimits).get(kind, INFINITY)


def parse_version(release: str) -> tuple[int, int]:
    """Return (6, 18) for `6.18.44-fc`; (0, 0) for what has no such form."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def probe() -> HostFacts:
    """Return this host's facts; takes a few ms."""
    release = platform.release()
    version = parse_version(release)
    layout = probes.attempt(detect, None)
    sets = probes.attempt(lambda: capabilities.read_sets("/proc/self/status"), _NO_NUMBERS)
    effective = sets.get("Eff", 0) & capabilities.ALL
    meminfo = probes.attempt(probes.meminfo, _NO_NUMBERS)
    return HostFacts(
        kernel=release,
        machine=platform.machine(),
        layout=layout,
        bounding=sets.get("Bnd", 0) & capabilities.ALL,
        effective=effective,
        lsms=probes.attempt(probes.lsms, ()),
        seccomp="errno" in probes.text("/proc/sys/kernel/seccomp/actions_avail").split(),
        overlay=probes.attempt(lambda: probes.mounts_overlay("lowerdir"), False),
        overlay_lowerdir_plus=probes.attempt(lambda: probes.mounts_overlay("lowerdir+"), False),
        idmapped_mounts=version >= (5, 19),
        recursive_readonly=version >= (5, 12),
        user_namespaces=probes.user_namespaces(),
        memfd_exec=probes.attempt(probes.memfd_exec, False),
        swap_accounting=layout is not None and probes.attempt(lambda: probes.swap_accounting(layout), False),
        swap_total=meminfo.get("SwapTotal", 0),
        hard_rlimits=tuple((kind, resource.getrlimit(kind)[1]) for kind in sorted(NUMBERS.values())),
        negative_oom_score_adj=capabilities.has(effective, "SYS_RESOURCE")
        or probes.attempt(probes.lowers_oom_score, False),
        cpus=len(os.sched_getaffinity(0)),
        memory_total=meminfo.get("MemTotal", 0),
        hugepage_sizes=probes.attempt(probes.hugepage_sizes, ()),
        ipv6=os.path.exists("/proc/net/if_inet6") and probes.number("/proc/sys/net/ipv6/conf/all/disable_ipv6", 1) == 0,
        nftables=probes.attempt(probes.nftables, False),
        threads_max=probes.number("/proc/sys/kernel/threads-max", 32768),
        pid_max=probes.number("/proc/sys/kernel/pid_max", 32768),
        root_shared=probes.attempt(probes.root_shared, False),
        pressure=bool(probes.text("/proc/pressure/cpu")),
        namespaces=probes.attempt(probes.own_namespaces, ()),
    )
