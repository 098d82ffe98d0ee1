"""The C floor's list of kernel calls, derived from a real container plan.

`program` takes the plan that crishim itself would carry out and writes, operation by operation, the kernel calls that
it comes to (see `crishim/engine/execute`): the same namespaces, control groups, mounts, masks, capabilities, rlimits
and seccomp bytes. What is not a kernel call of the plan (Python, messages between processes, the image's user files,
logs, the pin of the network namespace, the keeper) is left out, so the floor is a lower bound.

Out of scope: terminals, host namespaces, the v2 device program, propagation. A plan with such a thing is refused.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from crishim.engine.plan import types
from crishim.linux import calls

Line = tuple[str | int | bytes, ...]
CLOEXEC = calls.OPEN_TREE_CLOEXEC
EMPTY = calls.AT_EMPTY_PATH
RESOLVE = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
MOVE = calls.MOVE_MOUNT_F_EMPTY_PATH | calls.MOVE_MOUNT_T_EMPTY_PATH
NOTHING = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
NAMESPACES = {"net": calls.CLONE_NEWNET, "ipc": calls.CLONE_NEWIPC, "uts": calls.CLONE_NEWUTS}
KERNEL = ("/dev/", "/sys/fs")
# What an operation comes to beside the call of its own name.
COSTS: dict[str, tuple[str, ...]] = {"write": ("openat", "write", "close"), "rmtree": ()}


class Program:
    """The three sections while they are written."""

    def __init__(self, pod: types.PodPlan, plan: types.ContainerPlan, place: str) -> None:
        self.make: list[Line] = []
        self.child: list[Line] = []
        self.delete: list[Line] = []
        self.pod = pod
        self.plan = plan
        self.place = place
        self.masked = False
        self.own: set[str] = set()
        self.layers = [os.path.join(plan.root.base, layer) for layer in plan.root.lower]

    def has(self, path: str) -> bool:
        """Tell whether `path` is there when its turn comes: from the image, or below what the plan mounts first."""
        return path.startswith(KERNEL) or any(os.path.lexists(f"{layer}{path}") for layer in self.layers)


def program(pod: types.PodPlan, plan: types.ContainerPlan, place: str) -> str:
    """Return the text that `scripts/floor/floor.c` reads.

    Args:
        pod: whose namespaces, host name and shared memory the container has.
        plan: of the container; its upper and work directories are made and removed by the floor itself.
        place: an empty directory on which the root is attached.
    """
    text = Program(pod, plan, place)
    _parent(text)
    _groups(text)
    text.child.append(("mount", "", "/", "", calls.MS_REC | calls.MS_SLAVE, ""))
    _root(text)
    for operation in plan.mounts:
        OPERATIONS[type(operation)](text, operation)
    _pivot(text)
    _process(text)
    return "\n".join(_section("make", text.make) + _section("child", text.child) + _section("delete", text.delete))


def counts(text: str) -> Counter[str]:
    """Return how often each system call stands in a program, by its kernel name."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line and line[0] not in "[#":
            name = line.split("\t", 1)[0].removeprefix("?")
            found.update(COSTS.get(name, (name,)))
    return found


def _parent(text: Program) -> None:
    """Directories and groups, then the birth; at the end both go."""
    plan, group = text.plan, text.plan.cgroup
    top = os.path.dirname(plan.root.upper)
    text.make += [("mkdir", top, 0o711), ("mkdir", plan.root.upper, 0o755), ("mkdir", plan.root.work, 0o700)]
    text.make += [("mkdir", directory, 0o755) for directory in group.directories]
    text.make += [("write", f"{write.directory}/{write.file}", write.value) for write in group.writes]
    flags = calls.CLONE_NEWNS | calls.CLONE_NEWPID
    for name in text.pod.namespaces:
        flags |= NAMESPACES[name]
    born = _unified(group)
    text.make.append(("clone3", flags, born) if born else ("clone3", flags))
    text.delete += [("rmdir", directory) for directory in group.directories]
    text.delete.append(("rmtree", top))


def _groups(text: Program) -> None:
    group, process = text.plan.cgroup, text.plan.process
    born = _unified(group)
    rest = [directory for directory in group.directories if directory != born]
    text.child += [("write", f"{directory}/tasks", "0") for directory in rest]
    if text.plan.cgroup_namespace:
        text.child.append(("unshare", calls.CLONE_NEWCGROUP))
    if "uts" in text.pod.namespaces:
        text.child.append(("sethostname", text.pod.hostname))
    text.child += [("write", f"/proc/sys/{name}", value) for name, value in text.pod.sysctls.items()]
    if process.oom_score_adj is not None:
        text.child.append(("write", "/proc/self/oom_score_adj", str(process.oom_score_adj)))
    text.child += [("setsid",), ("keyctl", calls.KEYCTL_JOIN_SESSION_KEYRING, "")]


def _root(text: Program) -> None:
    root = text.plan.root
    text.child.append(("chdir", root.base))
    if not root.append:
        raise ValueError("the floor needs a kernel that takes overlay layers one by one (Linux 6.8)")
    pairs = [("lowerdir+", layer) for layer in root.lower] + [("upperdir", root.upper), ("workdir", root.work)]
    for option in root.options:
        key, _, value = option.partition("=")
        pairs.append((key, value))
    text.child += _new_fs("overlay", pairs, 0, "root")
    text.child.append(("move_mount", "=root", "", "cwd", text.place, calls.MOVE_MOUNT_F_EMPTY_PATH))


def _mount_fs(text: Program, operation: types.MountFs) -> None:
    name = _own(operation.target)
    text.child += _new_fs(operation.fstype, operation.options, operation.attributes, name)
    _attach_own(text, name, operation.target)


def _attach_own(text: Program, tree: str, target: str) -> None:
    """Attach a kernel file system: by name below one that the plan has mounted itself, else where the image has it."""
    above, _, name = target.rpartition("/")
    if above in text.own:
        move: Line = ("move_mount", f"={tree}", "", f"={_own(above)}", name, calls.MOVE_MOUNT_F_EMPTY_PATH)
        text.child.append(move)
    else:
        text.child += [*_target(text, target, directory=True, links=False), _move(tree, "target")]
    text.own.add(target)


def _bind(text: Program, operation: types.Bind) -> None:
    recursive = calls.AT_RECURSIVE if operation.recursive else 0
    text.child.append(("open_tree", "cwd", operation.source, calls.OPEN_TREE_CLONE | CLOEXEC | recursive, "=tree"))
    whole = operation.readonly_recursive or (operation.readonly and not recursive)
    attributes = operation.attributes | (calls.MOUNT_ATTR_RDONLY if whole else 0)
    text.child.append(_attributes("tree", attributes, calls.MS_PRIVATE, recursive))
    if operation.readonly and not whole:
        text.child.append(_attributes("tree", calls.MOUNT_ATTR_RDONLY))
    text.child += [*_target(text, operation.target, directory=operation.directory), _move("tree", "target")]


def _pod_shm(text: Program, operation: types.PodShm) -> None:
    name = _own(operation.target)
    options = [("mode", "1777"), ("size", str(text.pod.shm_size))]
    text.child += _new_fs("tmpfs", options, NOTHING, name)
    _attach_own(text, name, operation.target)


def _devices(text: Program, operation: types.Devices) -> None:
    place = f"={_own(operation.target)}"
    text.child += [("mkdirat", place, name, 0o755) for name in operation.directories]
    text.child.append(("umask", 0))
    for node in operation.nodes:
        kind = stat.S_IFCHR if node.kind == "c" else stat.S_IFBLK
        text.child.append(("mknodat", place, node.path, kind | node.mode, node.major, node.minor))
    text.child.append(("umask", 0o022))
    text.child += [("symlinkat", target, place, name) for target, name in operation.links]
    text.child.append(("openat", place, "null", os.O_PATH | os.O_NOFOLLOW, "=null"))


def _cgroup_view(text: Program, operation: types.CgroupView) -> None:
    readonly = calls.MOUNT_ATTR_RDONLY if operation.readonly else 0
    text.child += _target(text, operation.target, directory=True, links=False)
    clone = calls.OPEN_TREE_CLONE | CLOEXEC
    if len(operation.hierarchies) == 1 and not operation.hierarchies[0][0]:
        text.child += [("open_tree", "cwd", operation.hierarchies[0][1], clone, "=frame"), _move("frame", "target")]
    else:
        text.child += [
            *_new_fs("tmpfs", [("mode", "755"), ("size", "64k")], NOTHING, "frame"),
            _move("frame", "target"),
        ]
        for name, source in operation.hierarchies:
            text.child += [("mkdirat", "=frame", name, 0o755), ("open_tree", "cwd", source, clone, "=tree")]
            text.child.append(("move_mount", "=tree", "", "=frame", name, calls.MOVE_MOUNT_F_EMPTY_PATH))
        text.child += [("symlinkat", link, "=frame", name) for link, name in operation.links]
    text.child.append(_attributes("frame", NOTHING | readonly, calls.MS_PRIVATE, calls.AT_RECURSIVE))


def _mask_paths(text: Program, operation: types.MaskPaths) -> None:
    for path in operation.paths:
        if not _existing(text, path):
            continue
        if os.path.isfile(path):
            text.child.append(("open_tree", "=null", "", calls.OPEN_TREE_CLONE | CLOEXEC | EMPTY, "=tree"))
        elif text.masked:
            text.child.append(("open_tree", "=empty", "", calls.OPEN_TREE_CLONE | CLOEXEC | EMPTY, "=tree"))
        else:
            options = [("size", "0"), ("nr_inodes", "1"), ("mode", "555")]
            text.child += _new_fs("tmpfs", options, NOTHING | calls.MOUNT_ATTR_RDONLY, "empty")
            text.masked = True
            text.child.append(_move("empty", "target"))
            continue
        text.child.append(_move("tree", "target"))


def _readonly_paths(text: Program, operation: types.ReadonlyPaths) -> None:
    flags = calls.OPEN_TREE_CLONE | CLOEXEC | EMPTY | calls.AT_RECURSIVE
    for path in operation.paths:
        if not _existing(text, path):
            continue
        text.child.append(("open_tree", "=target", "", flags, "=tree"))
        text.child.append(_attributes("tree", calls.MOUNT_ATTR_RDONLY, calls.MS_PRIVATE, calls.AT_RECURSIVE))
        text.child.append(_move("tree", "target"))


def _terminal(_text: Program, _operation: types.Terminal) -> None:
    raise ValueError("the floor has no terminals")


def _pivot(text: Program) -> None:
    if text.plan.root.readonly:
        text.child.append(_attributes("root", calls.MOUNT_ATTR_RDONLY))
    text.child += [("fchdir", "=root"), ("pivot_root", ".", "."), ("umount2", ".", calls.MNT_DETACH), ("chdir", "/")]


def _process(text: Program) -> None:
    process = text.plan.process
    sets = process.capabilities
    text.make.insert(0, ("openat", "cwd", "/dev/null", os.O_RDWR, "=stdio"))
    text.delete.append(("close", "=stdio"))
    text.child += [("dup3", "=stdio", number, 0) for number in range(3)]
    text.child.append(("close_range", 3, 0xFFFFFFFF, calls.CLOSE_RANGE_CLOEXEC))
    text.child += [("prlimit64", limit.resource, limit.soft, limit.hard) for limit in process.rlimits]
    text.child.append(("umask", process.umask))
    text.child += [("openat", "cwd", process.cwd, os.O_PATH | os.O_DIRECTORY, "=work"), ("fchdir", "=work")]
    for number in range(_capabilities()):
        if not sets.bounding >> number & 1:
            text.child.append(("prctl", calls.PR_CAPBSET_DROP, number, 0, 0, 0))
    text.child.append(("prctl", calls.PR_SET_KEEPCAPS, 1, 0, 0, 0))
    text.child += [("setgroups", 0, *process.user.groups), ("setresgid", 0, 0, 0), ("setresuid", 0, 0, 0)]
    text.child.append(("prctl", calls.PR_SET_KEEPCAPS, 0, 0, 0, 0))
    _confine(text, process)
    env = [entry.encode("latin-1") for entry in process.env]
    text.child.append(("execve", process.argv[0], len(process.argv), *process.argv, *env, "HOME=/root"))


def _capabilities() -> int:
    """How many capabilities this kernel has (capabilities(7), cap_last_cap)."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read()) + 1


def _confine(text: Program, process: types.ProcessPlan) -> None:
    wanted = process.capabilities.permitted
    final = ("capset", wanted, wanted, process.capabilities.ambient)
    filtered: list[Line] = [("seccomp", 0, process.seccomp)] if process.seccomp else []
    if process.no_new_privs:
        text.child += [("prctl", calls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), final, *filtered]
        return
    if filtered:
        wider = wanted | 1 << 21 | 1 << 8  # CAP_SYS_ADMIN for the filter, CAP_SETPCAP as the executor does
        text.child += [("capset", wider, wider, 0), *filtered]
    text.child.append(final)


def _new_fs(fstype: str, options: Iterable[tuple[str, str]], attributes: int, name: str) -> list[Line]:
    lines: list[Line] = [("fsopen", fstype, 1, "=context")]
    for key, value in options:
        lines.append(("fsconfig", "=context", 1 if value else 0, key, value, 0))
    lines.append(("fsconfig", "=context", calls.FSCONFIG_CMD_CREATE, "", "", 0))
    return [*lines, ("fsmount", "=context", calls.FSMOUNT_CLOEXEC, attributes, f"={name}")]


def _target(text: Program, path: str, *, directory: bool, links: bool = True, out: str = "target") -> list[Line]:
    """The calls that give an O_PATH descriptor of a target, made with its parents where the image lacks it."""
    resolve = RESOLVE if links else RESOLVE | calls.RESOLVE_NO_SYMLINKS
    opened: Line = ("openat2", "=root", path, os.O_PATH, resolve, f"={out}")
    if text.has(path):
        return [opened]
    parent, name = os.path.split(path)
    above = f"{out}-above"
    lines: list[Line] = [("?openat2", *opened[1:]), *_target(text, parent, directory=True, out=above)]
    if directory:
        lines.append(("mkdirat", f"={above}", name, 0o755))
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        lines += [("openat", f"={above}", name, flags, "=made"), ("close", "=made")]
    inside = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
    return [*lines, ("openat2", f"={above}", name, os.O_PATH, inside, f"={out}"), ("close", f"={above}")]


def _existing(text: Program, path: str) -> bool:
    """Add the look for a path to be protected; the host's /proc and /sys tell whether it is there."""
    found = os.path.exists(path)
    text.child.append(("openat2" if found else "?openat2", "=root", path, os.O_PATH, RESOLVE, "=target"))
    return found


def _own(target: str) -> str:
    """The name under which the top of a file system mounted by the plan is kept."""
    return f"own:{target}"


def _move(tree: str, target: str) -> Line:
    return ("move_mount", f"={tree}", "", f"={target}", "", MOVE)


def _attributes(tree: str, add: int, propagation: int = 0, flags: int = 0) -> Line:
    return ("mount_setattr", f"={tree}", "", EMPTY | flags, add, 0, propagation)


def _unified(group: types.CgroupPlan) -> str:
    """The v2 directory that the child is born in, "" on a host that has none."""
    first = group.directories[0] if group.directories else ""
    above = os.path.dirname(os.path.dirname(first))
    return first if os.path.exists(f"{above}/cgroup.subtree_control") else ""


def _section(name: str, lines: list[Line]) -> list[str]:
    birth = [line for line in lines if line[0] == "clone3"]
    ordered = [line for line in lines if line[0] != "clone3"] + birth
    return [f"[{name}]", *("\t".join(_field(part) for part in line) for line in ordered)]


def _field(part: str | int | bytes) -> str:
    if isinstance(part, int):
        return str(part)
    data = part if isinstance(part, bytes) else part.encode()
    return "".join(chr(byte) if 32 <= byte < 127 and byte != ord("%") else f"%{byte:02x}" for byte in data)


OPERATIONS: dict[type, Callable[[Program, Any], None]] = {
    types.MountFs: _mount_fs,
    types.Bind: _bind,
    types.PodShm: _pod_shm,
    types.Devices: _devices,
    types.CgroupView: _cgroup_view,
    types.MaskPaths: _mask_paths,
    types.ReadonlyPaths: _readonly_paths,
    types.Terminal: _terminal,
}
