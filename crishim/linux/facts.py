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
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from crishim.errors import CrishimError
from crishim.linux import calls, capabilities
from crishim.linux.cgroups.layout import Layout, detect
from crishim.linux.rlimits import INFINITY, NUMBERS

T = TypeVar("T")
_NETLINK_NETFILTER = 12
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
    layout = _attempt(detect, None)
    sets = _attempt(lambda: capabilities.read_sets(), _NO_NUMBERS)  # noqa: PLW0108  _attempt takes no arguments
    effective = sets.get("Eff", 0) & capabilities.ALL
    meminfo = _attempt(_meminfo, _NO_NUMBERS)
    return HostFacts(
        kernel=release,
        machine=platform.machine(),
        layout=layout,
        bounding=sets.get("Bnd", 0) & capabilities.ALL,
        effective=effective,
        lsms=_attempt(_lsms, ()),
        seccomp="errno" in _text("/proc/sys/kernel/seccomp/actions_avail").split(),
        overlay=_attempt(lambda: _mounts_overlay("lowerdir"), False),
        overlay_lowerdir_plus=_attempt(lambda: _mounts_overlay("lowerdir+"), False),
        idmapped_mounts=version >= (5, 19),
        recursive_readonly=version >= (5, 12),
        user_namespaces=_user_namespaces(),
        memfd_exec=_attempt(_memfd_exec, False),
        swap_accounting=layout is not None and _attempt(lambda: _swap_accounting(layout), False),
        swap_total=meminfo.get("SwapTotal", 0),
        hard_rlimits=tuple((kind, resource.getrlimit(kind)[1]) for kind in sorted(NUMBERS.values())),
        negative_oom_score_adj=capabilities.has(effective, "SYS_RESOURCE") or _attempt(_lowers_oom_score, False),
        cpus=len(os.sched_getaffinity(0)),
        memory_total=meminfo.get("MemTotal", 0),
        hugepage_sizes=_attempt(_hugepage_sizes, ()),
        ipv6=os.path.exists("/proc/net/if_inet6") and _number("/proc/sys/net/ipv6/conf/all/disable_ipv6", 1) == 0,
        nftables=_attempt(_nftables, False),
        pid_max=_number("/proc/sys/kernel/pid_max", 32768),
        root_shared=_attempt(_root_shared, False),
        pressure=bool(_text("/proc/pressure/cpu")),
        namespaces=_attempt(_own_namespaces, ()),
    )


def _attempt(find: Callable[[], T], otherwise: T) -> T:
    try:
        return find()
    except (OSError, ValueError, IndexError, CrishimError):
        return otherwise


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str, otherwise: int) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return otherwise


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo's sizes in bytes."""
    lines = (line.split() for line in _text("/proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2}


def _lsms() -> tuple[str, ...]:
    listed = _text("/sys/kernel/security/lsm").strip()
    if listed:
        return tuple(listed.split(","))
    # securityfs may not be mounted; the two that concern containers show themselves elsewhere too.
    found = []
    if _text("/sys/module/apparmor/parameters/enabled").startswith("Y"):
        found.append("apparmor")
    if os.path.exists("/sys/fs/selinux/enforce"):
        found.append("selinux")
    return tuple(found)


def _mounts_overlay(key: str) -> bool:
    """Mount an overlay of two directories that every system has, attached nowhere: closing it ends it."""
    context = calls.fsopen("overlay")
    try:
        if key == "lowerdir":
            calls.fsconfig(context, "lowerdir", "/usr:/etc")
        else:
            calls.fsconfig(context, key, "/usr")
            calls.fsconfig(context, key, "/etc")
        calls.fscreate(context, "overlay")
        os.close(calls.fsmount(context, calls.MOUNT_ATTR_RDONLY, "overlay"))
        return True
    finally:
        os.close(context)


def _user_namespaces() -> int:
    """Return how many user namespaces may be made: 0 where the kernel has none or they are switched off."""
    if not os.path.exists("/proc/self/ns/user"):
        return 0
    return _number("/proc/sys/user/max_user_namespaces", 0)


def _memfd_exec() -> bool:
    if _number("/proc/sys/vm/memfd_noexec", 0) >= 2:
        return False
    executable = 0x10 if os.path.exists("/proc/sys/vm/memfd_noexec") else 0  # MFD_EXEC, unknown before 6.3
    os.close(os.memfd_create("probe", os.MFD_CLOEXEC | executable))
    return True


def _swap_accounting(layout: Layout) -> bool:
    directory = layout.directory("memory", "/")
    if directory is None:
        return False
    if layout.version == 1:
        return os.path.exists(f"{directory}/memory.memsw.limit_in_bytes")
    # v2's root group has no such file; any group below shows it.
    with os.scandir(directory) as entries:
        groups = [e.path for e in entries if e.is_dir() and os.path.exists(f"{e.path}/memory.max")]
    if groups:
        return os.path.exists(f"{groups[0]}/memory.swap.max")
    return "swapaccount=0" not in _text("/proc/cmdline").split()


def _hugepage_sizes() -> tuple[str, ...]:
    """Return sizes in the form of the hugetlb controller's file names: hugepages-2048kB is 2MB."""
    sizes = []
    for name in os.listdir("/sys/kernel/mm/hugepages"):
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        sizes.append(kilobytes)
    return tuple(_size(kb) for kb in sorted(sizes))


def _size(kilobytes: int) -> str:
    if kilobytes >= 1 << 20:
        return f"{kilobytes >> 20}GB"
    return f"{kilobytes >> 10}MB" if kilobytes >= 1 << 10 else f"{kilobytes}KB"


def _nftables() -> bool:
    """Ask nf_tables for its generation: answered only where it is there and we may use it."""
    nftables, get_generation, request, failure = 10, 16, 1, 2
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(1.0)
        netlink.bind((0, 0))
        message = struct.pack("=IHHIIBBH", 20, nftables << 8 | get_generation, request, 1, 0, 0, 0, 0)
        netlink.sendto(message, (0, 0))
        answer = netlink.recv(4096)
    return len(answer) >= 16 and int(struct.unpack_from("=H", answer, 4)[0]) != failure


def _root_shared() -> bool:
    for line in _text("/proc/self/mountinfo").split("\n"):
        fields = line.split(" ")
        if len(fields) > 6 and fields[4] == "/":
            return any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return False


def _own_namespaces() -> tuple[str, ...]:
    return tuple(sorted(name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")))


def _lowers_oom_score() -> bool:
    """Try: without CAP_SYS_RESOURCE a value may be lowered to the least that a capable process once set (proc(5))."""
    path = "/proc/self/oom_score_adj"
    before = _text(path)
    with open(path, "w", encoding="ascii") as file:
        file.write("-999")
    with open(path, "w", encoding="ascii") as file:
        file.write(before)
    return True
