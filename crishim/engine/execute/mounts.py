"""The mount operations of a container plan: one function per operation type, and the table that maps them.

Everything happens in the child, in its own mount namespace, before the root changes: sources are the host's, targets
lie below `Context.root` and are resolved inside it (`paths`). A target is an O_PATH fd from then on.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from crishim.engine.execute import paths
from crishim.engine.execute.report import StepError
from crishim.engine.execute.terminal import open_terminal
from crishim.linux import calls

_NULL = os.makedev(1, 3)


class Context:
    """What operations share: the root's fd, the pod's shared memory, and what earlier operations left."""

    __slots__ = ("empty", "master", "null", "root", "shm", "slave")

    def __init__(self, root: int, shm: int) -> None:
        self.root = root
        self.shm = shm
        self.null = -1
        self.empty = -1
        self.master = -1
        self.slave = -1


def apply(operations: list[dict[str, Any]], context: Context) -> None:
    """Apply the operations in their order."""
    for operation in operations:
        OPERATIONS[operation["type"]](operation, context)


def _mount_fs(operation: dict[str, Any], context: Context) -> None:
    target_path = operation["target"]
    target = _own_directory(context.root, target_path)
    tree = _new_fs(operation["fstype"], operation["options"], operation["attributes"], target_path)
    calls.move_mount(tree, target, target_path)
    os.close(tree)
    os.close(target)


def _new_fs(fstype: str, options: list[tuple[str, str]], attributes: int, what: str) -> int:
    context = calls.fsopen(fstype)
    for key, value in options:
        calls.fsconfig(context, key, value or None)
    calls.fscreate(context, what)
    tree = calls.fsmount(context, attributes, what)
    os.close(context)
    return tree


def _own_directory(root: int, path: str) -> int:
    """Return the directory on which a kernel file system is mounted; a link there would put it elsewhere."""
    try:
        target = paths.open_path(root, path, links=False)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StepError(f"mount {path}: the image has a symbolic link there", errno.ELOOP, path) from None
        if error.errno != errno.ENOENT:
            raise
        return paths.ensure(root, path, directory=True)
    if not stat.S_ISDIR(os.fstat(target).st_mode):
        raise StepError(f"mount {path}: the image has a file there", errno.ENOTDIR, path)
    return target


def _bind(operation: dict[str, Any], context: Context) -> None:
    source, path = operation["source"], operation["target"]
    recursive = calls.AT_RECURSIVE if operation["recursive"] else 0
    tree = calls.open_tree(calls.AT_FDCWD, source, calls.OPEN_TREE_CLONE | recursive)
    attributes = operation["attributes"]
    if operation["readonly_recursive"]:
        calls.mount_setattr(tree, "", attributes | calls.MOUNT_ATTR_RDONLY, 0, calls.MS_PRIVATE, recursive=True)
    else:
        calls.mount_setattr(tree, "", attributes, 0, calls.MS_PRIVATE, recursive=True)
        if operation["readonly"]:
            calls.mount_setattr(tree, "", calls.MOUNT_ATTR_RDONLY)
    target = paths.ensure(context.root, path, directory=operation["directory"])
    calls.move_mount(tree, target, path)
    os.close(tree)
    os.close(target)


def _pod_shm(operation: dict[str, Any], context: Context) -> None:
    path = operation["target"]
    tree = calls.open_tree(context.shm, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    target = paths.ensure(context.root, path, directory=True)
    calls.move_mount(tree, target, path)
    os.close(tree)
    os.close(target)


def _devices(operation: dict[str, Any], context: Context) -> None:
    top = paths.open_path(context.root, operation["target"], links=False)
    directory = os.open(f"/proc/self/fd/{top}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.close(top)
    for name in operation["directories"]:
        os.mkdir(name, 0o755, dir_fd=directory)
    old = os.umask(0)
    for node in operation["nodes"]:
        _make_node(node, directory)
    os.umask(old)
    for target, name in operation["links"]:
        os.symlink(target, name, dir_fd=directory)
    context.null = _checked_null(directory)
    os.close(directory)


def _make_node(node: dict[str, Any], directory: int) -> None:
    path = node["path"]
    parent = os.path.dirname(path)
    if parent:
        os.close(paths.ensure(directory, parent, directory=True))
    kind = stat.S_IFCHR if node["kind"] == "c" else stat.S_IFBLK
    os.mknod(path, kind | node["mode"], os.makedev(node["major"], node["minor"]), dir_fd=directory)
    if node["uid"] or node["gid"]:
        os.chown(path, node["uid"], node["gid"], dir_fd=directory, follow_symlinks=False)


def _checked_null(directory: int) -> int:
    """Return an fd of our own /dev/null; verified, since files are masked with it (CVE-2025-31133)."""
    fd = os.open("null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _NULL:
        raise StepError("/dev/null is not the null device", errno.EINVAL, "/dev/null")
    return fd


def _cgroup_view(operation: dict[str, Any], context: Context) -> None:
    path = operation["target"]
    attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
    readonly = calls.MOUNT_ATTR_RDONLY if operation["readonly"] else 0
    target = _own_directory(context.root, path)
    hierarchies = operation["hierarchies"]
    if len(hierarchies) == 1 and not hierarchies[0][0]:
        _bind_group(hierarchies[0][1], target, attributes | readonly, path)
        os.close(target)
        return
    frame = _new_fs("tmpfs", [("mode", "755"), ("size", "64k")], attributes, path)
    calls.move_mount(frame, target, path)
    os.close(target)
    for name, source in hierarchies:
        os.mkdir(name, 0o755, dir_fd=frame)
        place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=frame)
        _bind_group(source, place, attributes | readonly, f"{path}/{name}")
        os.close(place)
    for link, name in operation["links"]:
        os.symlink(link, name, dir_fd=frame)
    if readonly:
        calls.mount_setattr(frame, "", readonly)
    os.close(frame)


def _bind_group(source: str, place: int, attributes: int, what: str) -> None:
    tree = calls.open_tree(calls.AT_FDCWD, source, calls.OPEN_TREE_CLONE)
    calls.mount_setattr(tree, "", attributes, 0, calls.MS_PRIVATE)
    calls.move_mount(tree, place, what)
    os.close(tree)


def _terminal(operation: dict[str, Any], context: Context) -> None:
    pts = paths.open_path(context.root, "/dev/pts", links=False)
    context.master, context.slave = open_terminal(pts, operation["columns"], operation["rows"])
    os.close(pts)
    console = paths.ensure(context.root, "/dev/console", directory=False)
    tree = calls.open_tree(context.slave, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    calls.move_mount(tree, console, "/dev/console")
    os.close(tree)
    os.close(console)


def _mask_paths(operation: dict[str, Any], context: Context) -> None:
    for path in operation["paths"]:
        target = _existing(context.root, path)
        if target < 0:
            continue
        tree = _empty_tree(context) if stat.S_ISDIR(os.fstat(target).st_mode) else _null_tree(context)
        calls.move_mount(tree, target, f"mask over {path}")
        if context.empty < 0 and stat.S_ISDIR(os.fstat(tree).st_mode):
            context.empty = tree
        else:
            os.close(tree)
        os.close(target)


def _empty_tree(context: Context) -> int:
    """Return an empty read-only tmpfs; the first one serves all, cloned."""
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
        if target < 0:
            continue
        flags = calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH | calls.AT_RECURSIVE
        tree = calls.open_tree(target, "", flags)
        calls.mount_setattr(tree, "", calls.MOUNT_ATTR_RDONLY, 0, calls.MS_PRIVATE, recursive=True)
        calls.move_mount(tree, target, f"read-only {path}")
        os.close(tree)
        os.close(target)


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
    "Devices": _devices,
    "CgroupView": _cgroup_view,
    "Terminal": _terminal,
    "MaskPaths": _mask_paths,
    "ReadonlyPaths": _readonly_paths,
}
