"""The mount operations of a container plan: one function per operation type, and the table that maps them.

Everything happens in the child, in its own mount namespace, before the root changes: sources are the host's, targets
lie below `Context.root` and are resolved inside it (`paths`). A target is an O_PATH fd from then on; below a file
system that was mounted new here, and that nobody else has touched, a name is enough. No fd is closed: all are
close-on-exec, and the exec is a few milliseconds away.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from crishim.engine.execute import paths
from crishim.engine.execute.null import is_null
from crishim.engine.execute.report import StepError
from crishim.engine.execute.terminal import open_terminal
from crishim.linux import calls

SHM, FILES = "shm", "files"
"""The two parts of a pod's own tmpfs: what containers see at /dev/shm, and the files that they share."""

_CHANGED = {
    errno.ELOOP: "has become a symbolic link since the container was created",
    errno.ENOTDIR: "is no directory any more, as it was when the container was created",
}
_CHILDRENS = "/proc/self/ns/pid_for_children"
_NO_PROCFS = (
    "a container with CAP_SYS_PTRACE is in the same PID namespace, whose procfs this kernel cannot mount from outside "
    "(proc's option pidns, Linux 6.17): end that container first, or drop the capability"
)


class Context:
    """What operations share: the root's fd, the pod's own tmpfs, and what earlier operations left.

    `own` are the top directories of the file systems mounted new here, by target; `null` is the container's own
    /dev/null, open for reading and writing. `outside`: this process is not in the container's PID namespace, only its
    children will be.
    """

    __slots__ = ("empty", "master", "null", "outside", "own", "pod", "root", "slave")

    def __init__(self, root: int, pod: int | str, *, outside: bool) -> None:
        self.root = root
        self.pod = pod
        self.outside = outside
        self.null = -1
        self.empty = -1
        self.master = -1
        self.slave = -1
        self.own: dict[str, int] = {}


def apply(operations: list[dict[str, Any]], context: Context) -> None:
    """Apply the operations in their order."""
    for operation in operations:
        OPERATIONS[operation["type"]](operation, context)


def _mount_fs(operation: dict[str, Any], context: Context) -> None:
    target = operation["target"]
    options = operation["options"]
    if context.outside and operation["fstype"] == "proc":
        options = [*options, ("pidns", _CHILDRENS)]
    tree = _new_fs(operation["fstype"], options, operation["attributes"], target)
    _attach_own(tree, target, context)


def _new_fs(fstype: str, options: list[tuple[str, str]], attributes: int, what: str) -> int:
    context = calls.fsopen(fstype)
    for key, value in options:
        try:
            calls.fsconfig(context, key, value or None)
        except OSError as error:
            if key != "pidns" or error.errno != errno.EINVAL:
                raise
            # procfs shows the namespace of who mounts it, which is the host's here
            raise StepError(f"mount {what}: {_NO_PROCFS}", errno.EOPNOTSUPP, what) from None
    calls.fscreate(context, what)
    return calls.fsmount(context, attributes, what)


def _attach_own(tree: int, target: str, context: Context) -> None:
    """Attach a kernel file system; a link at its place would put it elsewhere, so none is followed."""
    above, _, name = target.rpartition("/")
    own = context.own.get(above)
    if own is not None:
        calls.move_mount(tree, own, target, name)
    else:
        calls.move_mount(tree, _plain_directory(context.root, target), target)
    context.own[target] = tree


def _plain_directory(root: int, path: str) -> int:
    try:
        return paths.open_path(root, path, links=False)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StepError(f"mount {path}: the image has a symbolic link there", errno.ELOOP, path) from None
        if error.errno != errno.ENOENT:
            raise
    return paths.ensure(root, path, directory=True)


def _bind(operation: dict[str, Any], context: Context) -> None:
    path = operation["target"]
    recursive = calls.AT_RECURSIVE if operation["recursive"] else 0
    found = _source(operation)
    tree = calls.open_tree(found, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH | recursive)
    attributes = operation["attributes"]
    if operation["readonly_recursive"] or (operation["readonly"] and not recursive):
        attributes |= calls.MOUNT_ATTR_RDONLY
    calls.mount_setattr(tree, "", attributes, 0, calls.MS_PRIVATE, recursive=bool(recursive))
    if operation["readonly"] and not attributes & calls.MOUNT_ATTR_RDONLY:
        calls.mount_setattr(tree, "", calls.MOUNT_ATTR_RDONLY)
    _attach(tree, path, context, directory=operation["directory"])


def _source(operation: dict[str, Any]) -> int:
    """Return an fd of the host's tree.

    The request's paths were resolved when the container was created: somebody who may write along one could have put a
    link in it since then, and would choose what is mounted. A directory is opened as one, which mounts what autofs(5)
    has there.
    """
    source, path = operation["source"], operation["target"]
    flags = os.O_PATH | (os.O_DIRECTORY if operation["directory"] else 0)
    links = calls.RESOLVE_NO_SYMLINKS if operation.get("resolved") else 0  # a daemon from before the field sends none
    try:
        return calls.openat2(calls.AT_FDCWD, source, flags, 0, links)
    except OSError as error:
        number = error.errno or 0
        what = _CHANGED.get(number) or os.strerror(number).lower()
        raise StepError(f"mount {path}: host path {source}: {what}", number, source) from None


def _attach(tree: int, path: str, context: Context, *, directory: bool) -> None:
    """Attach a tree at a path of the image's, which may lead anywhere inside."""
    target = paths.ensure(context.root, path, directory=directory)
    proc = context.own.get("/proc")
    if proc is not None and os.fstat(target).st_dev == os.fstat(proc).st_dev:
        # the image may lead there by a link; what is mounted over procfs would hide what protects the host
        raise StepError(f"mount {path}: leads into /proc by a link in the image", errno.EPERM, path)
    calls.move_mount(tree, target, path)


def _pod_shm(operation: dict[str, Any], context: Context) -> None:
    _attach_own(_pod_tree(context, SHM), operation["target"], context)


def _pod_file(operation: dict[str, Any], context: Context) -> None:
    tree = _pod_tree(context, f"{FILES}/{operation['name']}")
    attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV
    attributes |= calls.MOUNT_ATTR_RDONLY if operation["readonly"] else 0
    calls.mount_setattr(tree, "", attributes, 0, calls.MS_PRIVATE)
    _attach(tree, operation["target"], context, directory=False)


def _pod_tree(context: Context, name: str) -> int:
    """Clone a part of the pod's own tmpfs: of its mount's fd, or of its place in this mount namespace."""
    if isinstance(context.pod, str):
        tree = calls.open_tree(calls.AT_FDCWD, f"{context.pod}/{name}", calls.OPEN_TREE_CLONE)
        calls.mount_setattr(tree, "", 0, 0, calls.MS_PRIVATE)  # the host's would pass on what is mounted there
        return tree
    return calls.open_tree(context.pod, name, calls.OPEN_TREE_CLONE)


def _devices(operation: dict[str, Any], context: Context) -> None:
    directory = context.own[operation["target"]]
    for name in operation["directories"]:
        os.mkdir(name, 0o755, dir_fd=directory)
    old = os.umask(0)
    for node in operation["nodes"]:
        _make_node(node, directory)
    os.umask(old)
    for target, name in operation["links"]:
        os.symlink(target, name, dir_fd=directory)
    context.null = _checked_null(directory)


def _make_node(node: dict[str, Any], directory: int) -> None:
    path = node["path"]
    parent = path.rpartition("/")[0]
    if parent:
        paths.ensure(directory, parent, directory=True)
    kind = stat.S_IFCHR if node["kind"] == "c" else stat.S_IFBLK
    os.mknod(path, kind | node["mode"], os.makedev(node["major"], node["minor"]), dir_fd=directory)
    if node["uid"] or node["gid"]:
        os.chown(path, node["uid"], node["gid"], dir_fd=directory, follow_symlinks=False)


def _checked_null(directory: int) -> int:
    """Return an fd of our own /dev/null; verified, since files are masked with it (CVE-2025-31133)."""
    if not is_null(os.stat("null", dir_fd=directory, follow_symlinks=False)):
        raise StepError("/dev/null is not the null device", errno.EINVAL, "/dev/null")
    return os.open("null", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _cgroup_view(operation: dict[str, Any], context: Context) -> None:
    target = operation["target"]
    attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
    hierarchies = operation["hierarchies"]
    place = _plain_directory(context.own["/sys"], "fs/cgroup") if "/sys" in context.own else -1
    if place < 0:
        place = _plain_directory(context.root, target)
    if len(hierarchies) == 1 and not hierarchies[0][0]:
        frame = calls.open_tree(calls.AT_FDCWD, hierarchies[0][1], calls.OPEN_TREE_CLONE)
        calls.move_mount(frame, place, target)
    else:
        frame = _new_fs("tmpfs", [("mode", "755"), ("size", "64k")], attributes, target)
        calls.move_mount(frame, place, target)
        for name, source in hierarchies:
            os.mkdir(name, 0o755, dir_fd=frame)
            tree = calls.open_tree(calls.AT_FDCWD, source, calls.OPEN_TREE_CLONE)
            calls.move_mount(tree, frame, f"{target}/{name}", name)
        for link, name in operation["links"]:
            os.symlink(link, name, dir_fd=frame)
    if operation["readonly"]:
        attributes |= calls.MOUNT_ATTR_RDONLY
    calls.mount_setattr(frame, "", attributes, 0, calls.MS_PRIVATE, recursive=True)


def _terminal(operation: dict[str, Any], context: Context) -> None:
    devpts = context.own.get("/dev/pts", -1)
    if devpts < 0:
        raise StepError("terminal: a mount of the request covers /dev/pts", errno.EINVAL, "/dev/pts")
    context.master, context.slave = open_terminal(devpts, operation["columns"], operation["rows"])
    device = context.own["/dev"]
    os.close(os.open("console", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=device))
    tree = calls.open_tree(context.slave, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    calls.move_mount(tree, device, "/dev/console", "console")


def _mask_paths(operation: dict[str, Any], context: Context) -> None:
    for path in operation["paths"]:
        target = _existing(context.root, path)
        if target >= 0:
            directory = stat.S_ISDIR(os.fstat(target).st_mode)
            tree = _empty_tree(context) if directory else _null_tree(context)
            calls.move_mount(tree, target, f"mask over {path}")
            if directory:
                context.empty = tree


def _empty_tree(context: Context) -> int:
    """Return an empty read-only tmpfs; the first one, once it is attached, serves all, cloned."""
    if context.empty >= 0:
        return calls.open_tree(context.empty, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    attributes = calls.MOUNT_ATTR_RDONLY | calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
    return _new_fs("tmpfs", [("size", "0"), ("nr_inodes", "1"), ("mode", "555")], attributes, "mask")


def _null_tree(context: Context) -> int:
    if context.null < 0:
        raise StepError("a file is masked before /dev was made", errno.EINVAL, "/dev/null")
    return calls.open_tree(context.null, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)


def _readonly_paths(operation: dict[str, Any], context: Context) -> None:
    for path in operation["paths"]:
        target = _existing(context.root, path)
        if target >= 0:
            tree = calls.open_tree(target, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH | calls.AT_RECURSIVE)
            calls.mount_setattr(tree, "", calls.MOUNT_ATTR_RDONLY, 0, calls.MS_PRIVATE, recursive=True)
            calls.move_mount(tree, target, f"read-only {path}")


def _existing(root: int, path: str) -> int:
    """Return an O_PATH fd, or -1 where there is nothing to protect."""
    try:
        return paths.open_path(root, path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return -1
        raise


OPERATIONS: dict[str, Callable[[dict[str, Any], Context], None]] = {
    "MountFs": _mount_fs,
    "Bind": _bind,
    "PodShm": _pod_shm,
    "PodFile": _pod_file,
    "Devices": _devices,
    "CgroupView": _cgroup_view,
    "Terminal": _terminal,
    "MaskPaths": _mask_paths,
    "ReadonlyPaths": _readonly_paths,
}
