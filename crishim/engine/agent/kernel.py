"""Calls with the structures they take, as a child makes them: the idioms that plans are compiled to.

One method for one thing that the kernel does for a mount, a file or a process; each adds calls to a batch and gives
their results. Flags that are always right (close-on-exec) are put in here. Out of scope: what is done in which order.

Sources: the man page of section 2 of each call; linux/openat2.h, linux/mount.h, linux/sched.h, linux/stat.h.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crishim.engine.agent.batch import Argument, Batch, Half, Label, Place, Result, Value
from crishim.engine.agent.layout import Own
from crishim.linux import calls

_ALL = (1 << 64) - 1
_STATX_BASIC = 0x7FF
_STATX_SIZE = 256
_STX_MODE = 28
_STX_SIZE = 40
_STX_RDEV = 0x80
_STATFS_SIZE = 120
_PATH_MAX = 4096
_F_FLAGS = 80
_ST_RDONLY = 1
_F_SETFL = 4
PROC_MAGIC = 0x9FA0  # linux/magic.h
_SET_FLAG, _SET_STRING, _CREATE = calls.FSCONFIG_SET_FLAG, calls.FSCONFIG_SET_STRING, calls.FSCONFIG_CMD_CREATE
CWD = calls.AT_FDCWD
_EMPTY = calls.AT_EMPTY_PATH
IN_THE_WAY = {
    errno.ELOOP: "the image has a symbolic link there",
    errno.ENOTDIR: "is a file in the image, a directory must be mounted there",
}
NEVER = calls.RESOLVE_NO_MAGICLINKS
"""No path from an image or a request ever goes through a link of /proc/<pid>/{fd,cwd,root}, which leads anywhere."""


class Dangling(NamedTuple):
    """Where a child stops if a link leads to a directory that is not there: for its keeper, who makes the way.

    `again`: the call that could not open it; `above`, `read`, `link`: the directory that the link is in, its length and
    its text. `file`: its last part is to be a file, which is made by that call.
    """

    stop: str
    again: int
    above: Result
    read: Result
    link: Place
    path: str
    file: bool


class Kernel:
    """Adds idioms to a batch.

    Attributes:
        dangling: where it stops for links that lead nowhere, by the number that is told.
    """

    def __init__(self, batch: Batch, first_stop: int = 1) -> None:
        self.batch = batch
        self.dangling: dict[int, Dangling] = {}
        self._next_stop = first_stop
        self._link: Place | None = None
        self._empty = batch.text("")
        self._stat = batch.room(_STATX_SIZE)
        self._hows: dict[tuple[int, int, int], Place] = {}
        self._attributes: dict[tuple[int, int], Place] = {}

    # --- files -----------------------------------------------------------------------------------

    def openat2(
        self,
        directory: Value,
        path: str | bytes,
        flags: int,
        resolve: int = NEVER,
        *,
        mode: int = 0,
        allow: Sequence[int] = (),
        other: Label | None = None,
        result: str = "",
        what: str = "",
        hints: Mapping[int, str] | None = None,
    ) -> Result:
        """Open with a confined resolution; close-on-exec."""
        key = (flags | os.O_CLOEXEC, mode, resolve)
        how = self._hows.get(key)
        if how is None:
            note = f"{{flags={key[0]:#o}, mode={mode:#o}, resolve={resolve:#x}}}"
            how = self._hows[key] = self.batch.words(*key, note=note)
        text = self.batch.text(path)
        return self.batch.call(
            "openat2",
            directory,
            text,
            how,
            24,
            allow=allow,
            other=other,
            result=result,
            what=what or _str(path),
            hints=hints,
        )

    def write_file(self, path: str, content: bytes) -> None:
        """Write to a file of the host's; the descriptor goes with the others before the image has a say."""
        fd = self.batch.call("openat", CWD, self.batch.text(path), os.O_WRONLY | os.O_CLOEXEC, 0, what=path)
        self.batch.call("write", fd, self.batch.data(content, repr(content)[1:]), len(content), what=path)

    def ensure(self, path: str, *, directory: bool, links: bool = True, result: str = "") -> Result:
        """Open a path in the container's root (O_PATH), made with its parents (0755) if it is missing."""
        flags = os.O_PATH | (os.O_DIRECTORY if directory else 0)
        resolve = NEVER if links else NEVER | calls.RESOLVE_NO_SYMLINKS
        there = Label()
        self.openat2(CWD, path, flags, resolve, allow=(errno.ENOENT,), hints=IN_THE_WAY)
        self.batch.then(there)
        self.make(path, directory=directory, resolve=resolve, hints=IN_THE_WAY, links=links)
        self.batch.place(there)
        return self.openat2(CWD, path, flags, resolve, result=result)

    def make(
        self,
        path: str,
        *,
        directory: bool,
        resolve: int = NEVER,
        refused: Label | None = None,
        hints: Mapping[int, str] | None = None,
        links: bool = False,
        start: int = CWD,
    ) -> None:
        """Make a path that is missing, with its parents.

        Step by step: each directory is opened, and only a name in it is made, which follows no link. A file is made
        through a dangling link, at the place the link names; where the directory of that place is missing, or the link
        stands for a directory, the keeper is asked (`links`): only it can tell a link's parts.

        Args:
            path: in the container's root; in the directory `start`, where that is given.
            directory: what its last part is made as.
            resolve: RESOLVE_* flags.
            refused: where to go on if a directory may not be entered or written; None: that is a failure.
            hints: what errnos mean here.
            links: the way through links that lead nowhere is made, too.
            start: descriptor of the directory that the path is in.
        """
        batch = self.batch
        allow = () if refused is None else (errno.EACCES,)
        above = self.openat2(start, "/" if start == CWD else ".", os.O_PATH | os.O_DIRECTORY, resolve)
        parts = [part for part in path.split("/") if part not in {"", "."}]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if last and not directory:
                # not for writing: a mount that somebody writes to cannot be made read-only (EBUSY)
                flags, mode = os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o644
            else:
                flags, mode = os.O_PATH | os.O_DIRECTORY, 0
                exists = (errno.EEXIST, *allow)
                batch.call("mkdirat", above, batch.text(part), 0o755, allow=exists, what=path, hints=hints)
                if last and not links:
                    continue
            told = hints if flags & os.O_DIRECTORY else None
            if links:
                above = self._open_through_link(above, part, flags, resolve, mode, path, told)
            else:
                above = self.openat2(
                    above, part, flags, resolve, mode=mode, allow=allow, other=refused, what=path, hints=told
                )

    def _open_through_link(
        self, above: Result, part: str, flags: int, resolve: int, mode: int, path: str, hints: Mapping[int, str] | None
    ) -> Result:
        """Open a name that was made unless it was there; a link that leads nowhere is the keeper's."""
        batch = self.batch
        if self._link is None:
            self._link = batch.room(_PATH_MAX)
        there = Label()
        opened = self.openat2(above, part, flags, resolve, mode=mode, allow=(errno.ENOENT,), what=path, hints=hints)
        batch.then(there)
        read = batch.call("readlinkat", above, batch.text(part), self._link, _PATH_MAX, what=path)
        number = self._next_stop
        self._next_stop += 1
        name = f"link {number}"
        batch.stop(name, Own.REPORT, number)
        self.dangling[number] = Dangling(
            name, opened.position, above, read, self._link, path, not flags & os.O_DIRECTORY
        )
        batch.place(there)
        return opened

    def expect_mode(self, fd: Value, kind: int, other: Label | None = None) -> None:
        """Go on only if the descriptor is of this kind (S_IF*); with a label, go on there if it is of another."""
        mask = 0o170000 << 32
        # stx_mode is half a word's half: seen from the word before it, it stands in bits 32-47
        self._statx(fd, (self._stat.at(_STX_MODE - 4), mask, kind << 32))
        if other is not None:
            self.batch.otherwise(other)

    def expect_device(self, fd: Value, major: int, minor: int) -> None:
        """Go on only if the descriptor is this device."""
        self._statx(fd, (self._stat.at(_STX_RDEV), _ALL, minor << 32 | major), {0: "is another device"})

    def _statx(self, fd: Value, expect: tuple[Place, int, int], hints: Mapping[int, str] | None = None) -> None:
        self.batch.call("statx", fd, self._empty, _EMPTY, _STATX_BASIC, self._stat, expect=expect, hints=hints)

    def skip_empty(self, fd: Value, end: Label) -> None:
        """Go on at the label if the file is empty by its size, as all of procfs are: reading those may take long."""
        some = Label()
        self._statx(fd, (self._stat.at(_STX_SIZE), _ALL, 0))
        self.batch.otherwise(some)
        self.batch.call("getpid")
        self.batch.then(end)
        self.batch.place(some)

    def expect_procfs(self, fd: Value) -> None:
        """Go on only if the descriptor is in a procfs."""
        buffer = self.batch.room(_STATFS_SIZE)
        self.batch.call("fstatfs", fd, buffer, expect=(buffer, _ALL, PROC_MAGIC), hints={0: "is no procfs"})

    def expect_writable(self, fd: Value) -> None:
        """Go on only if the descriptor's mount and file system can be written to (statfs(2), f_flags)."""
        buffer = self.batch.room(_STATFS_SIZE)
        hints = {0: "no space is left for what the container writes"}
        self.batch.call("fstatfs", fd, buffer, expect=(buffer.at(_F_FLAGS), _ST_RDONLY, 0), hints=hints)

    def own_null(self) -> None:
        """Let 0, if it is a null device, be this root's own; where there is none, an empty pipe reads the same.

        Who has a descriptor may change its inode through /proc/<pid>/fd: nobody gets the host's node.
        """
        batch = self.batch
        end, pipe = Label(), Label()
        self._statx(0, (self._stat.at(_STX_RDEV), _ALL, 3 << 32 | 1))
        batch.otherwise(end)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY  # it may be anything by now, and must hold nobody up
        refusals = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        fd = self.openat2(CWD, "/dev/null", flags, NEVER | calls.RESOLVE_NO_SYMLINKS, allow=refusals, other=pipe)
        self._statx(fd, (self._stat.at(_STX_RDEV), _ALL, 3 << 32 | 1))
        batch.otherwise(pipe)
        batch.call("fcntl", fd, _F_SETFL, os.O_RDWR)
        self.duplicate(fd, 0, keep=True)
        batch.then(end)
        batch.place(pipe)
        ends = batch.room(8)
        batch.call("pipe2", ends, os.O_CLOEXEC)
        self.duplicate(Half(ends), 0, keep=True)
        batch.call("close", Half(ends.at(4)))
        batch.place(end)

    def refuse_procfs(self, fd: Value, path: str) -> None:
        """Fail if the descriptor is in a procfs: what is mounted over it would hide what protects the host."""
        batch = self.batch
        good = Label()
        buffer = batch.room(_STATFS_SIZE)
        batch.call("fstatfs", fd, buffer, expect=(buffer, _ALL, PROC_MAGIC), what=path)
        batch.otherwise(good)
        hints = {0: "leads into /proc by a link in the image"}
        batch.call("fstatfs", fd, buffer, expect=(buffer, _ALL, 0), what=path, hints=hints)
        batch.place(good)

    # --- mounts ----------------------------------------------------------------------------------

    def new_fs(self, fstype: str, options: Sequence[tuple[str, str]], attributes: int, what: str) -> Result:
        """Return a detached mount of a new file system."""
        batch = self.batch
        context = batch.call("fsopen", batch.text(fstype), calls.FSOPEN_CLOEXEC, result=f"{fstype}_context", what=what)
        for key, value in options:
            self.option(context, key, value or None, what)
        batch.call("fsconfig", context, _CREATE, 0, 0, 0, what=what)
        return batch.call("fsmount", context, calls.FSMOUNT_CLOEXEC, attributes, result=fstype, what=what)

    def option(self, context: Result, key: str, value: str | None, what: str) -> None:
        """Set one parameter of a file system context; None sets a flag."""
        text = self.batch.text
        if value is None:
            self.batch.call("fsconfig", context, _SET_FLAG, text(key), 0, 0, what=what)
        else:
            self.batch.call("fsconfig", context, _SET_STRING, text(key), text(value), 0, what=f"{what} {key}={value}")

    def clone_tree(
        self,
        fd: Value,
        path: str = "",
        *,
        recursive: bool = False,
        what: str = "",
        allow: Sequence[int] = (),
        other: Label | None = None,
    ) -> Result:
        """Return a detached copy of a mount."""
        flags = calls.OPEN_TREE_CLONE | os.O_CLOEXEC | (calls.AT_RECURSIVE if recursive else 0)
        flags |= 0 if path else _EMPTY
        text = self.batch.text(path)
        return self.batch.call("open_tree", fd, text, flags, result="tree", what=what or path, allow=allow, other=other)

    def set_attributes(
        self, fd: Value, attributes: int, *, private: bool = False, recursive: bool = False, path: str = ""
    ) -> None:
        """Set attributes of a mount, or of the tree that it is the top of."""
        propagation = calls.MS_PRIVATE if private else 0
        key = (attributes, propagation)
        place = self._attributes.get(key)
        if place is None:
            note = f"{{attr_set={attributes:#x}, propagation={propagation:#x}}}"
            place = self._attributes[key] = self.batch.words(attributes, 0, propagation, 0, note=note)
        flags = (0 if path else _EMPTY) | (calls.AT_RECURSIVE if recursive else 0)
        self.batch.call("mount_setattr", fd, self.batch.text(path), flags, place, 32, what=path)

    def attach(
        self, tree: Value | Half, to: Value, name: str = "", *, what: str = "", hints: Mapping[int, str] | None = None
    ) -> None:
        """Attach a detached mount on a descriptor, or on a name below it."""
        flags = calls.MOVE_MOUNT_F_EMPTY_PATH | (0 if name else calls.MOVE_MOUNT_T_EMPTY_PATH)
        text = self.batch.text(name)
        self.batch.call("move_mount", tree, self._empty, to, text, flags, what=what or name, hints=hints)

    # --- the process -----------------------------------------------------------------------------

    def prctl(self, option: int, arg2: int = 0, arg3: int = 0, *, allow: Sequence[int] = (), what: str = "") -> None:
        """Operate on the process."""
        self.batch.call("prctl", option, arg2, arg3, 0, 0, allow=allow, what=what)

    def default_signals(self) -> None:
        """Put every signal's default action back and block none: also 32 and 33, which C libraries keep for themselves.

        exec passes on what is ignored, and posix_spawn(3) of glibc leaves those two ignored.
        """
        default = self.batch.words(0, 0, 0, 0, note="{SIG_DFL}")
        for number in range(1, 65):
            if number not in {9, 19}:
                self.batch.call("rt_sigaction", number, default, 0, 8)
        self.batch.call("rt_sigprocmask", 2, default, 0, 8)  # SIG_SETMASK to the empty set

    def duplicate(self, fd: Argument, to: int, *, keep: bool = False, what: str = "") -> None:
        """Make `to` a copy of the descriptor; close-on-exec unless it is to be kept."""
        self.batch.call("dup3", fd, to, 0 if keep else os.O_CLOEXEC, what=what)

    def close_from(self, first: int, last: int = 0xFFFFFFFF) -> None:
        """Close all descriptors of a range; to mark them is not enough (CVE-2024-21626)."""
        self.batch.call("close_range", first, last, 0)


def _str(path: str | bytes) -> str:
    return path if isinstance(path, str) else os.fsdecode(path)
