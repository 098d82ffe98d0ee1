"""What a keeper makes before it serves: the pod's namespaces, its pin, shared memory, sysctls and control group.

The keeper itself moves into the new network, IPC and UTS namespaces and stays there: its containers are born in
them, so none has to join anything. In the host's mount namespace it leaves one mount, the network namespace's pin.
The pod's own tmpfs, with its /dev/shm and the files that its containers share, is detached: only the keeper's fd keeps
it alive, and its parts are cloned into each container. What containers write there is bounded by its size, and nothing
of it has a path on the host.

On failure nothing is taken back here: the daemon, which asked for it, undoes a half-made pod by the same code with
which it removes a whole one (`engine.client`, `remove_pod`).
"""

import _socket
import os
import stat
from typing import Any

from crishim.engine.execute.mounting import FILES, SHM
from crishim.engine.execute.report import StepError
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups

_NAMESPACES = {"net": calls.CLONE_NEWNET, "ipc": calls.CLONE_NEWIPC, "uts": calls.CLONE_NEWUTS}
_FILES_SIZE = 1 << 20
PLACE = "shm"
"""Below the pod's directory, where the pod's tmpfs is attached if the kernel does not clone a detached mount."""
_NETLINK_ROUTE = 0
_AF_NETLINK = 16


class Pod:
    """The pod's kernel objects that the keeper holds."""

    __slots__ = ("files", "netlink", "netns", "tree")

    def __init__(self) -> None:
        self.netns = -1
        self.netlink: _socket.socket | None = None
        self.tree: int | str = -1
        self.files = -1

    def hand_over(self) -> list[int]:
        """Return the fds that the daemon completes the pod by.

        They are the directory of the shared files, and where it has a network of its own the namespace and a route
        socket made inside it.
        """
        return [self.files, self.netns, self.netlink.fileno()] if self.netlink is not None else [self.files]

    def close(self) -> None:
        """Let go of all of them, the tmpfs with what is in it."""
        self.let_go()
        if isinstance(self.tree, int):
            os.close(self.tree)
        else:
            unmount(self.tree)

    def let_go(self) -> None:
        """Close what was handed over: only the pin and the processes hold the namespace from then on."""
        if self.files >= 0:
            os.close(self.files)
            self.files = -1
        if self.netlink is not None:
            self.netlink.close()
            os.close(self.netns)
            self.netlink = None


def prepare(namespaces: tuple[str, ...], shm_size: int, directory: str) -> Pod:
    """Make what needs no more than the kinds of namespaces; a spare keeper has done this before it is needed.

    Args:
        namespaces: subset of `net`, `ipc`, `uts`.
        shm_size: bytes of /dev/shm, 0 for the host's.
        directory: the pod's, for kernels that clone only attached mounts; "" where there is none yet.

    Raises:
        OSError: the step that failed, by its text.
    """
    pod = Pod()
    flags = 0
    for name in namespaces:
        flags |= _NAMESPACES[name]
    if flags:
        calls.unshare(flags)
    if "net" in namespaces:
        pod.netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        pod.netlink = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    pod.tree = _own_tree(shm_size, directory)
    place = {"path": f"{pod.tree}/{FILES}"} if isinstance(pod.tree, str) else {"path": FILES, "dir_fd": pod.tree}
    pod.files = os.open(flags=os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, **place)
    return pod


def complete(plan: dict[str, Any]) -> None:
    """Make what has the pod's own name or values; the keeper is in the pod's namespaces already.

    Raises:
        OSError, StepError: the step that failed, by its text.
    """
    group = plan["cgroup"]
    cgroups.make(group["directories"], parent=True)
    cgroups.write_all((w["directory"], w["file"], w["value"]) for w in group["writes"])
    if "uts" in plan["namespaces"] and plan["hostname"]:
        calls.sethostname(plan["hostname"])
    for key, value in plan["sysctls"].items():
        _set_sysctl(key, value)
    if plan["pin"]:
        _pin(plan["pin"])


def _pin(path: str) -> None:
    """Bind the network namespace, so that CNI plugins and nsenter find it (ip-netns(8))."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    calls.mount("/proc/self/ns/net", path, "", calls.MS_BIND)


def _set_sysctl(key: str, value: str) -> None:
    """Write one namespaced sysctl; the planner has checked the key, and the file must be a plain one of procfs."""
    path = f"/proc/sys/{key}"
    try:
        fd = calls.openat2(
            calls.AT_FDCWD, path, os.O_WRONLY, 0, calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS
        )
    except OSError as error:
        raise StepError(f"sysctl {key}: {os.strerror(error.errno or 0).lower()}", error.errno or 0, path) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StepError(f"sysctl {key}: is not a setting", 0, path)
        os.write(fd, value.encode())
    except OSError as error:
        raise StepError(
            f"sysctl {key}={value}: {os.strerror(error.errno or 0).lower()}", error.errno or 0, path
        ) from None
    finally:
        os.close(fd)


def _own_tree(size: int, directory: str) -> int | str:
    """Return the pod's own tmpfs, `size` bytes large; a pod that has the host's /dev/shm needs it for its files alone.

    A detached mount is an fd. An attached one is a path, which each container resolves in its own mount namespace: a
    mount, or a clone of one, belongs to the namespace that it came from, and is not cloned in another one (EINVAL;
    `may_copy_tree` in the kernel's fs/namespace.c).
    """
    context = calls.fsopen("tmpfs")
    calls.fsconfig(context, "mode", "700")
    calls.fsconfig(context, "size", str(size or _FILES_SIZE))
    calls.fscreate(context, "the pod's tmpfs")
    attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
    mount = calls.fsmount(context, attributes, "the pod's tmpfs")
    os.close(context)
    for name, mode in ((SHM, 0o1777), (FILES, 0o755)):
        os.mkdir(name, dir_fd=mount)
        os.chmod(name, mode, dir_fd=mount)
    if directory and not can_clone(mount):
        # Linux before 6.15 clones only mounts that are attached somewhere
        place = f"{directory}/{PLACE}"
        os.makedirs(place, 0o700, exist_ok=True)
        calls.move_mount(mount, calls.AT_FDCWD, place, place)
        os.close(mount)
        return place
    return mount


def can_clone(mount: int | str) -> bool:
    """Tell whether this is a detached mount, and the kernel clones it."""
    if isinstance(mount, str):
        return False
    try:
        os.close(calls.open_tree(mount, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH))
    except OSError:
        return False
    return True


def unmount(path: str) -> None:
    """Unmount if something is mounted there."""
    try:
        calls.umount(path, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in {2, 22}:  # ENOENT: no such path; EINVAL: not a mount
            raise
