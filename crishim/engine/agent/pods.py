"""What an agent does for its pod, as batches: its own first calls, the namespaces, the names, process 1, ends. Pure.

The agent stays in the pod's network, IPC and UTS namespaces, so containers are born in them and join nothing. In the
host's mount namespace a pod leaves one mount, the network namespace's pin. Its own tmpfs, with its /dev/shm and the
files that its containers share, is detached: only the agent's descriptor keeps it alive, and its parts are cloned into
each container. Kernels before 6.15, which clone only attached mounts, get it at a path.
"""

import errno
import os
from collections.abc import Mapping

from crishim.engine.agent.batch import Batch, Half, Label, Param, Result
from crishim.engine.agent.kernel import CWD, Kernel
from crishim.engine.agent.layout import (
    AREA,
    AREA_SIZE,
    CMSG_DATA,
    FIRST,
    HELD_FILES,
    HELD_NETNS,
    HELD_POD,
    HELD_PROC,
    HELD_ROUTE,
    PAGE,
    RECEIVED,
    RECEIVED_FIRST,
    RECEIVED_LAST,
    SLOT,
    SOCKET,
    Own,
    Stage,
)
from crishim.engine.agent.processes import settle
from crishim.engine.agent.roots import FILES, PROC, SHM
from crishim.engine.agent.starts import First
from crishim.linux import calls

_FLAGS = {"net": calls.CLONE_NEWNET, "ipc": calls.CLONE_NEWIPC, "uts": calls.CLONE_NEWUTS}
_TREE_ATTRIBUTES = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522
_P_PID, _WNOHANG, _WEXITED, _WNOWAIT = 1, 1, 4, 0x1000000
_SIGINFO_SIZE = 128
_SI_CODE, _SI_STATUS = 8, 24
_EXITED = 1
_READ_WRITE = 3
_SHARED_FIXED = 0x1 | 0x10
_MADV_DONTFORK = 10
_FILES_SIZE = 1 << 20
_AF_NETLINK, _SOCK_RAW, _NETLINK_ROUTE = 16, 3, 0
_SIGKILL = 9
_AT_ONCE = 6  # sysctls that an area has room for


def _batch(machine: str) -> Batch:
    return Batch(machine, AREA + FIRST)


def settled(machine: str, keeper: int = 0) -> Batch:
    """Return an agent's very first batch: it keeps nothing of who started it, and ends with its keeper.

    Its limit of descriptors stays its keeper's, which is raised: it holds them at numbers that grow with the pod.
    Containers have limits of their own (ProcessPlan.rlimits, all of them).

    Args:
        machine: as `uname -m` names it.
        keeper: pid of the keeper, its parent; an agent whose parent is another by now ends at once. 0: whoever it is.
    """
    batch = _batch(machine)
    batch.reason("nothing of who started it")
    batch.call("close_range", RECEIVED_FIRST, 0xFFFFFFFF, 0)
    batch.call("umask", 0o022)
    _end_with_keeper(batch, keeper)
    return batch


def _end_with_keeper(batch: Batch, keeper: int) -> None:
    """Let an agent that no pod has yet end with the keeper's thread that started it (PR_SET_PDEATHSIG)."""
    batch.reason("until a pod has it, it ends with its keeper")
    Kernel(batch).prctl(calls.PR_SET_PDEATHSIG, _SIGKILL)
    if not keeper:
        return
    gone, there = Label(), Label()
    parent = Result(len(batch.calls), "parent")
    batch.call("getppid", result="parent", expect=(parent, (1 << 64) - 1, keeper))  # it may have died before
    batch.otherwise(gone)
    batch.call("getpid")
    batch.then(there)
    batch.place(gone)
    batch.call("exit_group", 0)
    batch.place(there)


def namespaces(machine: str, kinds: tuple[str, ...], shm_size: int, place: str = "") -> Batch:
    """Return what needs no more than the kinds of namespaces, and so can be done before the pod is known.

    Args:
        machine: as `uname -m` names it.
        kinds: subset of `net`, `ipc`, `uts`.
        shm_size: bytes of /dev/shm, 0 for the host's.
        place: where the pod's tmpfs is attached, for kernels that do not clone a detached mount; "" elsewhere.
    """
    batch = _batch(machine)
    kernel = Kernel(batch)
    flags = 0
    for kind in kinds:
        flags |= _FLAGS[kind]
    if flags:
        batch.reason("the pod's namespaces")
        batch.call("unshare", flags)
    if "net" in kinds:
        fd = batch.call("openat", CWD, batch.text("/proc/self/ns/net"), os.O_RDONLY | os.O_CLOEXEC, 0)
        kernel.duplicate(fd, HELD_NETNS)
        route = batch.call("socket", _AF_NETLINK, _SOCK_RAW | os.O_CLOEXEC, _NETLINK_ROUTE)
        kernel.duplicate(route, HELD_ROUTE)
    batch.reason("the pod's own tmpfs: shared memory, and files")
    options = [("mode", "700"), ("size", str(shm_size or _FILES_SIZE))]
    tree = kernel.new_fs("tmpfs", options, _TREE_ATTRIBUTES, "the pod's tmpfs")
    for name, mode in ((SHM, 0o1777), (FILES, 0o755)):
        batch.call("mkdirat", tree, batch.text(name), mode, what=name)
        batch.call("fchmodat", tree, batch.text(name), mode, what=name)
    files = kernel.openat2(tree, FILES, os.O_RDONLY | os.O_DIRECTORY)
    kernel.duplicate(files, HELD_FILES)
    if place:
        kernel.attach(tree, CWD, place)
    else:
        kernel.duplicate(tree, HELD_POD)
    batch.call("close_range", RECEIVED_FIRST, HELD_POD - 1, 0)
    return batch


def let_go(machine: str) -> Batch:
    """Return the batch that closes what the pod was completed by: only pin and processes hold it from then on."""
    batch = _batch(machine)
    batch.call("close_range", HELD_NETNS, HELD_FILES, 0)
    return batch


def names(machine: str, hostname: str, pin: str) -> Batch:
    """Return what makes an agent a pod's: its hostname, the pin of its network namespace ("" for none), its own life.

    From here on it outlives its keeper.
    """
    batch = _batch(machine)
    if hostname:
        batch.reason("the pod's name")
        encoded = hostname.encode()
        batch.call("sethostname", batch.text(encoded), len(encoded), what=hostname)
    if pin:
        batch.reason("the network namespace's pin, for CNI and nsenter (ip-netns(8))")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        made = batch.call("openat", CWD, batch.text(pin), flags, 0o444, what=pin)
        batch.call("close", made)
        own = batch.text("/proc/self/ns/net")
        batch.call("mount", own, batch.text(pin), 0, calls.MS_BIND, 0, what=pin)
    batch.reason("it is a pod's, and outlives its keeper")
    Kernel(batch).prctl(calls.PR_SET_PDEATHSIG, 0)
    return batch


def sysctls(machine: str, values: Mapping[str, str]) -> list[Batch]:
    """Return the batches that write namespaced sysctls (paths below /proc/sys), as many as an area holds at a time."""
    batches = []
    items = list(values.items())
    for first in range(0, len(items), _AT_ONCE):
        batch = _batch(machine)
        kernel = Kernel(batch)
        for key, value in items[first : first + _AT_ONCE]:
            batch.reason(f"sysctl {key}={value}")
            resolve = calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
            what = f"sysctl {key}={value}"
            fd = kernel.openat2(CWD, f"/proc/sys/{key}", os.O_WRONLY, resolve, what=what)
            kernel.expect_mode(fd, 0o100000)
            content = value.encode()
            batch.call("write", fd, batch.data(content, repr(value)), len(content), what=what)
            batch.call("close", fd)
        batches.append(batch)
    return batches


def hold(machine: str, number: int) -> Batch:
    """Return the batch that takes the one descriptor that comes along, and holds it under a number."""
    batch = _batch(machine)
    batch.call("dup3", Half(AREA + RECEIVED + CMSG_DATA), number, os.O_CLOEXEC)
    batch.call("close_range", RECEIVED_FIRST, RECEIVED_LAST, 0)
    return batch


def hold_procfs(machine: str, place: str = "") -> Batch:
    """Return the batch that takes the procfs which process 1 has handed over, for the pod's containers.

    Args:
        machine: as `uname -m` names it.
        place: where the pod's tmpfs is attached: kernels that do not clone a detached mount get this one in there.
    """
    if not place:
        return hold(machine, HELD_PROC)
    batch = _batch(machine)
    batch.reason("the procfs of the pod's PID namespace")
    path = f"{place}/{PROC}"
    batch.call("mkdirat", CWD, batch.text(path), 0o555, allow=(errno.EEXIST,), what=path)
    target = Kernel(batch).openat2(CWD, path, os.O_PATH | os.O_DIRECTORY)
    Kernel(batch).attach(Half(AREA + RECEIVED + CMSG_DATA), target, what=path)
    batch.call("close_range", RECEIVED_FIRST, RECEIVED_LAST, 0)
    return batch


def first_process(machine: str, place: str) -> First:
    """Return the batch of process 1 of a shared PID namespace: it is born in it and in a mount namespace of its own.

    The pod's containers see it, and one that has CAP_SYS_PTRACE may look into it. So it has nothing: an empty read-only
    root, no descriptor, no capability. procfs belongs to its mounter's namespace: it makes the mount before anyone else
    is there, hands it over by the report socket, and ends as the agent's program with one argument, which reaps.

    Args:
        machine: as `uname -m` names it.
        place: an empty directory of the host's, on which its root is attached.
    """
    batch = Batch(machine, SLOT)
    kernel = Kernel(batch)
    settle(kernel, {"version": 0, "directories": []}, None, (), [(Own.TARGET, Stage.TARGET)])
    batch.reason("the namespace's procfs, for the containers")
    attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
    _send(batch, kernel, kernel.new_fs("proc", (), attributes, "/proc"))
    batch.reason("an empty read-only root")
    batch.call("mount", 0, batch.text("/"), 0, calls.MS_REC | calls.MS_SLAVE, 0, what="/")
    top = kernel.new_fs("tmpfs", [("size", "0")], calls.MOUNT_ATTR_RDONLY, "/")
    kernel.attach(top, CWD, place)
    dot = batch.text(".")
    batch.call("fchdir", top)
    batch.call("pivot_root", dot, dot)
    batch.call("umount2", dot, calls.MNT_DETACH)
    batch.call("chdir", batch.text("/"))
    batch.reason("no capability, now or later")
    for number in range(_LAST_CAPABILITY + 1):
        kernel.prctl(calls.PR_CAPBSET_DROP, number, allow=(errno.EINVAL,))
    batch.call("capset", batch.words(_CAPABILITY_VERSION_3), batch.data(bytes(24), "{}"))
    batch.reason("from here on it reaps")
    kernel.duplicate(Own.TARGET, Own.PROC)
    kernel.close_from(Own.PROC + 1)
    for number in range(3):
        batch.call("close", number)
    argv = batch.words(batch.text("crishim-agent"), batch.text("1"), 0, note='["crishim-agent", "1"]')
    none = batch.words(0)
    batch.call("execveat", Own.PROC, batch.text(""), argv, none, calls.AT_EMPTY_PATH)
    return First(batch, None, (Stage.SLOT, Stage.REPORT, Stage.TARGET), inside=False)


def another(machine: str, keeper: int = 0) -> tuple[Batch, Batch]:
    """Return the batches by which an agent makes one more: its own, and that of the new process.

    A clone of an agent that is there costs less than a new program. With the doorbell come the slot, the new agent's
    socket and its area. The new agent's parent is who started the first one, and has to collect it like that; it ends
    with it too, from the start (`keeper` as for `settled`).
    """
    batch = _batch(machine)
    for number, to in enumerate((Stage.SLOT, Stage.REPORT, Stage.TARGET)):
        batch.call("dup3", Half(AREA + RECEIVED + CMSG_DATA + 4 * number), to, os.O_CLOEXEC)
    batch.call("close_range", RECEIVED_FIRST, RECEIVED_LAST, 0)
    batch.call("mmap", SLOT, PAGE, _READ_WRITE, _SHARED_FIXED, Stage.SLOT, 0)
    arguments = batch.words(calls.CLONE_PARENT, *[0] * 10, note="{flags=CLONE_PARENT}")
    batch.call("clone3", arguments, 88, result="pid")
    batch.child(SLOT)
    batch.call("munmap", SLOT, PAGE)
    batch.call("close_range", Stage.SLOT, Stage.TARGET, 0)

    new = Batch(machine, SLOT)
    kernel = Kernel(new)
    _end_with_keeper(new, keeper)  # a new process has no such signal yet (clone(2))
    new.reason("another socket and area")
    kernel.duplicate(Stage.REPORT, SOCKET, keep=True)
    new.call("mmap", AREA, AREA_SIZE, _READ_WRITE, _SHARED_FIXED, Stage.TARGET, 0)
    new.call("madvise", AREA, AREA_SIZE, _MADV_DONTFORK)
    new.call("setsid")
    kernel.close_from(SOCKET + 1)
    new.become_agent()
    return batch, new


def fetch_procfs(machine: str) -> First:
    """Return the batch of a child that brings the procfs of a running container, for one that shares its processes.

    Its mount is looked up in the container's root, where anything may be: only a procfs is taken.
    """
    batch = Batch(machine, SLOT)
    kernel = Kernel(batch)
    settle(kernel, {"version": 0, "directories": []}, None, (), [(Own.TARGET, Stage.TARGET)])
    batch.reason("the container's procfs")
    batch.call("setns", Own.TARGET, calls.CLONE_NEWNS, what="its mounts")
    root = calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
    proc = kernel.openat2(CWD, "/proc", os.O_PATH | os.O_DIRECTORY, root)
    tree = kernel.clone_tree(proc, what="/proc")
    kernel.expect_procfs(tree)
    _send(batch, kernel, tree)
    batch.call("exit_group", 0)
    return First(batch, None, (Stage.SLOT, Stage.REPORT, Stage.TARGET), inside=False)


def _send(batch: Batch, kernel: Kernel, fd: Result) -> None:
    """Send a descriptor through the report socket."""
    kernel.duplicate(fd, Own.PROC)
    rights = batch.words(20, 1 | 1 << 32, Own.PROC, note="SCM_RIGHTS")
    message = batch.words(0, 0, batch.words(batch.words(0), 1), 1, rights, 24, 0)
    batch.call("sendmsg", Own.REPORT, message, 0, what="procfs")


class Ended:
    """Reading and collecting the end of a child, whose pid stays its own until it is collected."""

    def __init__(self, machine: str) -> None:
        batch = _batch(machine)
        self._info = batch.room(_SIGINFO_SIZE)
        batch.call("waitid", _P_PID, Param("pid"), self._info, _WEXITED | _WNOHANG | _WNOWAIT, 0)
        self.look = batch.finish()
        self._offset = FIRST + batch.offset_of(self._info)
        batch = _batch(machine)
        batch.call("waitid", _P_PID, Param("pid"), 0, _WEXITED | _WNOHANG, 0)
        self.reap = batch.finish()

    def status(self, area: bytes) -> int | None:
        """Return what `look` found in the area: 0-255, 128 + signal, or None if the process goes on."""
        info = area[self._offset : self._offset + _SIGINFO_SIZE]
        number, code, status = (int.from_bytes(info[n : n + 4], "little") for n in (0, _SI_CODE, _SI_STATUS))
        if not number:
            return None
        return status if code == _EXITED else 128 + status
