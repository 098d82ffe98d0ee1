"""A container's root and its mounts: the JSON form of a ContainerPlan's `root` and `mounts` → a child's calls. Pure.

Three stretches. `gather`: everything that is the host's is taken hold of, as detached mounts. `enter`: the overlay is
made and becomes the root, and the host's mounts go. `furnish`: everything is attached; from here on the container's own
root is this process's root, so a link of the image leads nowhere else, and missing mount points are made with plain
calls. Kernel file systems are made here too; only a process in the container's own PID namespace mounts procfs (procfs
belongs to the mounter's), any other one is handed it (`proc`).

The overlay is `volatile`: what a container wrote needs no sync at its end, since it never runs twice. A start that did
not come to its program may be done anew; what the kernel keeps from a second mount by is taken away then.
"""

import errno
import os
import stat
from typing import Any

from crishim.engine.agent.batch import Label, Result, Value
from crishim.engine.agent.kernel import CWD, NEVER, Kernel
from crishim.engine.agent.layout import Own
from crishim.linux import calls

_AT_REMOVEDIR = 0x200
_OPTIONS_LIMIT = 4095  # mount(2): one page
SHM, FILES = "shm", "files"
"""The two parts of a pod's own tmpfs: what containers see at /dev/shm, and the files that they share."""
PROC = "proc"
"""Where the procfs of the pod's PID namespace is attached in it, on kernels that do not clone a detached mount."""
_CHANGED = {
    errno.ELOOP: "has become a symbolic link since the container was created",
    errno.ENOTDIR: "is no directory any more, as it was when the container was created",
}
_A_DIRECTORY = {errno.EINVAL: "is a directory in the image, a file must be mounted there"}
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCSWINSZ = 0x5414
_FRAME = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC


class Root:
    """Compiles a plan's root and mounts; the methods are called in the order they stand in.

    Args:
        kernel: where the calls go.
        plan: the JSON form of a ContainerPlan.
        place: an empty directory of the host's, on which the root is attached.
        pod: where the pod's own tmpfs is attached, for kernels that do not clone a detached mount; "" for the
            descriptor `Own.POD`.
        proc: procfs comes as the descriptor `Own.PROC`, or it is the pod's, and at `PROC` in its attached tmpfs.
    """

    def __init__(self, kernel: Kernel, plan: dict[str, Any], place: str, *, pod: str = "", proc: bool = False) -> None:
        self._kernel = kernel
        self._batch = kernel.batch
        self._plan = plan
        self._place = place
        self._pod = pod
        self._proc = proc
        self._trees: dict[int, Value] = {}
        self._views: dict[int, list[tuple[str, Value]]] = {}
        self._procfs: Value | None = None
        self.own: dict[str, Value] = {}
        self._null: Value | None = None
        self.slave: Value | None = None

    # --- what is the host's ----------------------------------------------------------------------

    def gather(self) -> None:
        """Take hold of everything that is the host's."""
        kernel, batch = self._kernel, self._batch
        batch.reason("the host's mounts do not see this container's, but it sees theirs go")
        slash = batch.text("/")
        batch.call("mount", 0, slash, 0, calls.MS_REC | calls.MS_SLAVE, 0, what="/")
        for number, operation in enumerate(self._plan["mounts"]):
            kind = operation["type"]
            if kind == "Bind":
                title = f"mount {operation['target']}: host path {operation['source']}"
                batch.reason(f"hold {operation['source']} for {operation['target']}", title)
                self._trees[number] = self._bound(operation)
            elif kind == "MountFs" and operation["fstype"] == "proc" and self._proc:
                batch.reason("hold the PID namespace's procfs")
                self._procfs = self._held_procfs()
            elif kind == "PodShm":
                batch.reason("hold the pod's shared memory")
                self._trees[number] = self._of_pod(SHM)
            elif kind == "PodFile":
                batch.reason(f"hold the pod's {operation['name']}")
                self._trees[number] = tree = self._of_pod(f"{FILES}/{operation['name']}")
                attributes = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV
                attributes |= calls.MOUNT_ATTR_RDONLY if operation["readonly"] else 0
                kernel.set_attributes(tree, attributes, private=True)
            elif kind == "CgroupView":
                batch.reason("hold the container's control groups")
                self._views[number] = [
                    (name, kernel.clone_tree(CWD, source)) for name, source in operation["hierarchies"]
                ]

    def _bound(self, operation: dict[str, Any]) -> Result:
        """Hold the host's tree.

        Its path was resolved when the container was created: a link that came since then would let somebody choose what
        is mounted. A directory is opened as one, which mounts what autofs(5) has there.
        """
        recursive = operation["recursive"]
        flags = os.O_PATH | (os.O_DIRECTORY if operation["directory"] else 0)
        links = calls.RESOLVE_NO_SYMLINKS if operation.get("resolved") else 0
        found = self._kernel.openat2(CWD, operation["source"], flags, links, hints=_CHANGED)
        tree = self._kernel.clone_tree(found, recursive=recursive, what=operation["source"])
        attributes = operation["attributes"]
        if operation["readonly_recursive"] or (operation["readonly"] and not recursive):
            attributes |= calls.MOUNT_ATTR_RDONLY
        self._kernel.set_attributes(tree, attributes, private=True, recursive=recursive)
        if operation["readonly"] and not attributes & calls.MOUNT_ATTR_RDONLY:
            self._kernel.set_attributes(tree, calls.MOUNT_ATTR_RDONLY)
        return tree

    def _held_procfs(self) -> Value:
        """Hold the procfs of the PID namespace.

        One that was fetched for this start is a clone of another mount namespace's, and cannot be cloned again.
        """
        if self._plan["pid"] != "pod":
            return Own.PROC
        if not self._pod:
            return self._kernel.clone_tree(Own.PROC, what="the PID namespace's procfs")
        return self._of_pod(PROC)

    def _of_pod(self, name: str) -> Result:
        """Hold a part of the pod's own tmpfs."""
        if not self._pod:
            return self._kernel.clone_tree(Own.POD, name)
        tree = self._kernel.clone_tree(CWD, f"{self._pod}/{name}")
        self._kernel.set_attributes(tree, 0, private=True)  # the host's would pass on what is mounted there
        return tree

    # --- the root --------------------------------------------------------------------------------

    def enter(self) -> None:
        """Make the overlay and let it be the root; the host's mounts go (pivot_root(2), NOTES)."""
        batch = self._batch
        root = self._plan["root"]
        batch.reason("the root: the image's layers and one read/write layer")
        batch.call("chdir", batch.text(root["base"]), what=root["base"])
        if "volatile" in root["options"]:
            self._forget_volatile(f"{root['work']}/work/incompat/volatile")
        top = self._overlay_of_layers(root) if root["append"] else self._overlay_by_options(root)
        batch.reason(
            "the kernel makes it read-only without a word if its working directory has no space", "root overlay"
        )
        self._kernel.expect_writable(top)
        batch.reason("it becomes the root, and the host's mounts go")
        dot = batch.text(".")
        batch.call("fchdir", top)
        batch.call("pivot_root", dot, dot)
        batch.call("umount2", dot, calls.MNT_DETACH)
        batch.call("chdir", batch.text("/"))

    def _forget_volatile(self, mark: str) -> None:
        """Take away the mark of a start before this one (Documentation/filesystems/overlayfs.rst, "Volatile mount")."""
        fresh = Label()
        text = self._batch.text
        self._batch.call("unlinkat", CWD, text(f"{mark}/dirty"), 0, allow=(errno.ENOENT,), other=fresh, what=mark)
        self._batch.call("unlinkat", CWD, text(mark), _AT_REMOVEDIR, what=mark)
        self._batch.place(fresh)

    def _overlay_of_layers(self, root: dict[str, Any]) -> Result:
        options = [("lowerdir+", layer) for layer in root["lower"]]
        options += [("upperdir", root["upper"]), ("workdir", root["work"])]
        options += [(key, value) for key, _, value in (option.partition("=") for option in root["options"])]
        top = self._kernel.new_fs("overlay", options, 0, "root overlay")
        self._kernel.attach(top, CWD, self._place, what="root")
        return top

    def _overlay_by_options(self, root: dict[str, Any]) -> Result:
        """Kernels before 6.8: one option string, mounted on the read/write layer's own directory."""
        batch = self._batch
        lower = ":".join(layer.replace("\\", "\\\\").replace(":", "\\:") for layer in root["lower"])
        options = [f"lowerdir={lower}", f"upperdir={root['upper']}", f"workdir={root['work']}"]
        data = ",".join([*(option.replace(",", "\\,") for option in options), *root["options"]])
        if len(data) > _OPTIONS_LIMIT:
            count = len(root["lower"])
            raise ValueError(f"root overlay: {count} layers need {len(data)} bytes of options, max {_OPTIONS_LIMIT}")
        place = os.path.dirname(root["upper"])
        overlay, text = batch.text("overlay"), batch.text(place)
        batch.call("mount", overlay, text, overlay, 0, batch.text(data), what="root overlay")
        return batch.call("open_tree", CWD, text, os.O_CLOEXEC, result="overlay", what=place)

    # --- what is in it ---------------------------------------------------------------------------

    def furnish(self) -> None:
        """Attach everything, in the plan's order."""
        for number, operation in enumerate(self._plan["mounts"]):
            getattr(self, _FURNISH[operation["type"]])(number, operation)
        if self._plan["root"]["readonly"]:
            self._batch.reason("the root is read-only")
            self._kernel.set_attributes(CWD, calls.MOUNT_ATTR_RDONLY, path="/")

    def _mount_fs(self, _number: int, operation: dict[str, Any]) -> None:
        target, fstype = operation["target"], operation["fstype"]
        self._batch.reason(f"{fstype} at {target}", f"mount {target}")
        if fstype == "proc" and self._procfs is not None:
            tree = self._procfs
        else:
            tree = self._kernel.new_fs(fstype, operation["options"], operation["attributes"], target)
        self._attach_own(tree, target)

    def _attach_own(self, tree: Value, target: str) -> None:
        """Attach a kernel file system; a link at its place would put it elsewhere, so none is followed."""
        above, _, name = target.rpartition("/")
        if above in self.own:
            self._kernel.attach(tree, self.own[above], name, what=target)
        else:
            self._kernel.attach(tree, self._kernel.ensure(target, directory=True, links=False), what=target)
        self.own[target] = tree

    def _bind(self, number: int, operation: dict[str, Any]) -> None:
        path = operation["target"]
        self._batch.reason(f"{operation['source']} at {path}", f"mount {path}")
        self._attach_at(self._trees[number], path, directory=operation["directory"])

    def _attach_at(self, tree: Value, path: str, *, directory: bool) -> None:
        """Attach a tree at a path of the image's, which may lead anywhere inside but to procfs."""
        target = self._kernel.ensure(path, directory=directory)
        self._kernel.refuse_procfs(target, path)
        self._kernel.attach(tree, target, what=path, hints=_A_DIRECTORY)

    def _pod_shm(self, number: int, operation: dict[str, Any]) -> None:
        self._batch.reason("the pod's shared memory", f"mount {operation['target']}")
        self._attach_own(self._trees[number], operation["target"])

    def _pod_file(self, number: int, operation: dict[str, Any]) -> None:
        path = operation["target"]
        self._batch.reason(f"the pod's {operation['name']} at {path}", f"mount {path}")
        self._attach_at(self._trees[number], path, directory=False)

    def _devices(self, _number: int, operation: dict[str, Any]) -> None:
        batch = self._batch
        directory = self.own[operation["target"]]
        batch.reason("devices")
        for name in operation["directories"]:
            batch.call("mkdirat", directory, batch.text(name), 0o755, what=name)
        for node in operation["nodes"]:
            self._node(directory, node)
        for target, name in operation["links"]:
            batch.call("symlinkat", batch.text(target), directory, batch.text(name), what=name)
        batch.reason("the null device, with which files are masked, is the null device", "/dev/null")
        beneath = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
        self._null = self._kernel.openat2(directory, "null", os.O_PATH, beneath, result="null", what="/dev/null")
        self._kernel.expect_device(self._null, 1, 3)

    def _node(self, directory: Value, node: dict[str, Any]) -> None:
        batch, path = self._batch, node["path"]
        parts = path.split("/")
        for number in range(1, len(parts)):
            above = batch.text("/".join(parts[:number]))
            batch.call("mkdirat", directory, above, 0o755, allow=(errno.EEXIST,), what=path)
        kind = stat.S_IFCHR if node["kind"] == "c" else stat.S_IFBLK
        device = os.makedev(node["major"], node["minor"])
        name = batch.text(path)
        batch.call("mknodat", directory, name, kind | node["mode"], device, what=path)
        if node["uid"] or node["gid"]:
            batch.call("fchownat", directory, name, node["uid"], node["gid"], calls.AT_SYMLINK_NOFOLLOW, what=path)

    def _cgroup_view(self, number: int, operation: dict[str, Any]) -> None:
        kernel, batch = self._kernel, self._batch
        target, trees = operation["target"], self._views[number]
        batch.reason(f"the container's control groups at {target}", f"mount {target}")
        if "/sys" in self.own:
            place = kernel.openat2(self.own["/sys"], "fs/cgroup", os.O_PATH | os.O_DIRECTORY, what=target)
        else:
            place = kernel.ensure(target, directory=True, links=False)
        if len(trees) == 1 and not trees[0][0]:
            frame = trees[0][1]
            kernel.attach(frame, place, what=target)
        else:
            frame = kernel.new_fs("tmpfs", [("mode", "755"), ("size", "64k")], _FRAME, target)
            kernel.attach(frame, place, what=target)
            for name, tree in trees:
                batch.call("mkdirat", frame, batch.text(name), 0o755, what=name)
                kernel.attach(tree, frame, name, what=f"{target}/{name}")
            for link, name in operation["links"]:
                batch.call("symlinkat", batch.text(link), frame, batch.text(name), what=name)
        readonly = calls.MOUNT_ATTR_RDONLY if operation["readonly"] else 0
        kernel.set_attributes(frame, _FRAME | readonly, private=True, recursive=True)

    def _terminal(self, _number: int, operation: dict[str, Any]) -> None:
        """Both ends come from the container's own devpts by descriptor: no name is trusted (CVE-2025-52565)."""
        kernel, batch = self._kernel, self._batch
        if "/dev/pts" not in self.own:
            raise ValueError("terminal: a mount of the request covers /dev/pts")
        batch.reason("the terminal, and /dev/console with it")
        beneath = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
        flags = os.O_RDWR | os.O_NOCTTY
        master = kernel.openat2(self.own["/dev/pts"], "ptmx", flags, beneath, result="master", what="/dev/ptmx")
        batch.call("ioctl", master, _TIOCSPTLCK, batch.room(8), what="TIOCSPTLCK")
        self.slave = batch.call("ioctl", master, _TIOCGPTPEER, flags | os.O_CLOEXEC, result="slave", what="TIOCGPTPEER")
        if operation["columns"] and operation["rows"]:
            size = batch.data(
                operation["rows"].to_bytes(2, "little") + operation["columns"].to_bytes(2, "little") + bytes(4)
            )
            batch.call("ioctl", master, _TIOCSWINSZ, size, what="TIOCSWINSZ")
        device = self.own["/dev"]
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        kernel.openat2(device, "console", create, beneath, mode=0o600, what="/dev/console")
        kernel.attach(kernel.clone_tree(self.slave, what="/dev/console"), device, "console", what="/dev/console")
        batch.reason("the keeper gets the master")
        kernel.duplicate(master, Own.MASTER)
        rights = batch.words(20, 1 | 1 << 32, Own.MASTER, note="SCM_RIGHTS")
        word = batch.words(0)
        message = batch.words(0, 0, batch.words(word, 1), 1, rights, 24, 0)
        batch.call("sendmsg", Own.REPORT, message, 0, what="the terminal's master")

    def _mask_paths(self, _number: int, operation: dict[str, Any]) -> None:
        if self._null is None:
            raise ValueError("a file is masked before /dev was made")
        kernel, batch = self._kernel, self._batch
        batch.reason("an empty directory to mask others with")
        empty = self._empty_tree()
        for path in operation["paths"]:
            batch.reason(f"mask {path}", f"mount mask over {path}")
            end, file, fresh = Label(), Label(), Label()
            target = kernel.openat2(CWD, path, os.O_PATH, allow=(errno.ENOENT, errno.ENOTDIR), other=end)
            kernel.expect_mode(target, stat.S_IFDIR, file)
            # kernels before 6.15 clone no detached mount: each gets a file system of its own then
            tree = kernel.clone_tree(empty, what="mask", allow=(errno.EINVAL,), other=fresh)
            kernel.attach(tree, target, what=f"mask over {path}")
            batch.then(end)
            batch.place(fresh)
            kernel.attach(self._empty_tree(), target, what=f"mask over {path}")
            batch.then(end)
            batch.place(file)
            kernel.attach(kernel.clone_tree(self._null, what="/dev/null"), target, what=f"mask over {path}")
            batch.place(end)

    def _empty_tree(self) -> Result:
        options = [("size", "0"), ("nr_inodes", "1"), ("mode", "555")]
        return self._kernel.new_fs("tmpfs", options, calls.MOUNT_ATTR_RDONLY | _FRAME, "mask")

    def _readonly_paths(self, _number: int, operation: dict[str, Any]) -> None:
        kernel, batch = self._kernel, self._batch
        for path in operation["paths"]:
            batch.reason(f"read-only {path}", f"mount read-only {path}")
            end = Label()
            target = kernel.openat2(CWD, path, os.O_PATH, NEVER, allow=(errno.ENOENT, errno.ENOTDIR), other=end)
            tree = kernel.clone_tree(target, recursive=True, what=path)
            kernel.set_attributes(tree, calls.MOUNT_ATTR_RDONLY, private=True, recursive=True)
            kernel.attach(tree, target, what=f"read-only {path}")
            batch.place(end)


_FURNISH = {
    "MountFs": "_mount_fs",
    "Bind": "_bind",
    "PodShm": "_pod_shm",
    "PodFile": "_pod_file",
    "Devices": "_devices",
    "CgroupView": "_cgroup_view",
    "Terminal": "_terminal",
    "MaskPaths": "_mask_paths",
    "ReadonlyPaths": "_readonly_paths",
}
