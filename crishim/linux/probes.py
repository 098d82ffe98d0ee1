"""The single probes behind `facts`: each looks at one ability of the host, or tries it, and leaves nothing behind.

A probe may raise OSError or ValueError; `attempt` turns that into "absent". Sources: see `facts`.
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from crishim.errors import CrishimError
from crishim.linux import calls
from crishim.linux.cgroups.layout import Layout

T = TypeVar("T")
_NETLINK_NETFILTER = 12


def attempt(find: Callable[[], T], otherwise: T) -> T:
    """Return what `find` finds, or `otherwise` if it cannot."""
    try:
        return find()
    except (OSError, ValueError, IndexError, CrishimError):
        return otherwise


def text(path: str) -> str:
    """Return a file's text, "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def number(path: str, otherwise: int) -> int:
    """Return the number that a file holds."""
    try:
        return int(text(path))
    except ValueError:
        return otherwise


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo's sizes in bytes."""
    lines = (line.split() for line in text("/proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2}


def lsms() -> tuple[str, ...]:
    """Return the names of the active security modules."""
    listed = text("/sys/kernel/security/lsm").strip()
    if listed:
        return tuple(listed.split(","))
    # securityfs may not be mounted; the two that concern containers show themselves elsewhere too.
    found = []
    if text("/sys/module/apparmor/parameters/enabled").startswith("Y"):
        found.append("apparmor")
    if os.path.exists("/sys/fs/selinux/enforce"):
        found.append("selinux")
    return tuple(found)


def mounts_overlay(key: str) -> bool:
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


def user_namespaces() -> int:
    """Return how many user namespaces may be made: 0 where the kernel has none or they are switched off."""
    if not os.path.exists("/proc/self/ns/user"):
        return 0
    return number("/proc/sys/user/max_user_namespaces", 0)


def memfd_exec() -> bool:
    """Tell whether a memfd may be executed (memfd_create(2), vm.memfd_noexec)."""
    if number("/proc/sys/vm/memfd_noexec", 0) >= 2:
        return False
    executable = 0x10 if os.path.exists("/proc/sys/vm/memfd_noexec") else 0  # MFD_EXEC, unknown before 6.3
    os.close(os.memfd_create("probe", os.MFD_CLOEXEC | executable))
    return True


def swap_accounting(layout: Layout) -> bool:
    """Tell whether groups have a limit of swap."""
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
    return "swapaccount=0" not in text("/proc/cmdline").split()


def hugepage_sizes() -> tuple[str, ...]:
    """Return sizes in the form of the hugetlb controller's file names: hugepages-2048kB is 2MB."""
    sizes = []
    for name in os.listdir("/sys/kernel/mm/hugepages"):
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        sizes.append(kilobytes)
    return tuple(size(kb) for kb in sorted(sizes))


def size(kilobytes: int) -> str:
    """Return a size like `2MB`."""
    if kilobytes >= 1 << 20:
        return f"{kilobytes >> 20}GB"
    return f"{kilobytes >> 10}MB" if kilobytes >= 1 << 10 else f"{kilobytes}KB"


def nftables() -> bool:
    """Ask nf_tables for its generation: answered only where it is there and we may use it."""
    nftables, get_generation, request, failure = 10, 16, 1, 2
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(1.0)
        netlink.bind((0, 0))
        message = struct.pack("=IHHIIBBH", 20, nftables << 8 | get_generation, request, 1, 0, 0, 0, 0)
        netlink.sendto(message, (0, 0))
        answer = netlink.recv(4096)
    return len(answer) >= 16 and int(struct.unpack_from("=H", answer, 4)[0]) != failure


def root_shared() -> bool:
    """Tell whether the mount of `/` is shared (mount_namespaces(7))."""
    for line in text("/proc/self/mountinfo").split("\n"):
        fields = line.split(" ")
        if len(fields) > 6 and fields[4] == "/":
            return any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return False


def own_namespaces() -> tuple[str, ...]:
    """Return the kinds of namespaces that this process is in."""
    return tuple(sorted(name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")))


def lowers_oom_score() -> bool:
    """Try: without CAP_SYS_RESOURCE a value may be lowered to the least that a capable process once set (proc(5))."""
    path = "/proc/self/oom_score_adj"
    before = text(path)
    with open(path, "w", encoding="ascii") as file:
        file.write("-999")
    with open(path, "w", encoding="ascii") as file:
        file.write(before)
    return True
