"""System calls that Python's `os` does not have, each bound once, with types and an error check.

For the daemon and for the tiny spawner and keeper processes alike, so it imports nothing beyond ctypes and os. Every
function raises `OSError(errno, "call object")`, so that the message names what failed and on what. Out of scope:
policy of any kind. Sources: the man pages of section 2 of each name; numbers from the kernel's uapi headers
(asm/unistd_64.h, asm-generic/unistd.h), which are the same on every architecture from 424 on.
"""

import ctypes
import os

from crishim.linux import processes

# --- numbers -----------------------------------------------------------------------------------------------------

_MACHINE = os.uname().machine
SYS = {  # calls below 424 differ between architectures
    "x86_64": {"pivot_root": 155, "capget": 125, "capset": 126, "keyctl": 250, "seccomp": 317, "clone": 56}
    | {"rt_sigaction": 13, "set_mempolicy": 238, "ioprio_set": 251, "sched_setattr": 314},
    "aarch64": {"pivot_root": 41, "capget": 90, "capset": 91, "keyctl": 219, "seccomp": 277, "clone": 220}
    | {"rt_sigaction": 134, "set_mempolicy": 237, "ioprio_set": 30, "sched_setattr": 274},
}
SYS_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
_NR = SYS_COMMON | SYS.get(_MACHINE, SYS["x86_64"])

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_TSC = 26
PR_SET_SECUREBITS = 28
PR_SET_TIMERSLACK = 29
PR_MCE_KILL = 33
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
PR_CAP_AMBIENT = 47
PR_SET_IO_FLUSHER = 57
PR_SET_MEMORY_MERGE = 67
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
KEYCTL_JOIN_SESSION_KEYRING = 1
CLOSE_RANGE_CLOEXEC = 4
_CAPABILITY_VERSION_3 = 0x20080522

# --- bindings ----------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_long, _int, _ulong, _char_p, _void_p = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_char_p,
    ctypes.c_void_p,
)


def _bind(name: str, *arguments: type) -> "ctypes._CFuncPtr":  # type: ignore[name-defined]
    function = _libc[name]
    function.argtypes = arguments
    function.restype = _int
    return function


_mount = _bind("mount", _char_p, _char_p, _char_p, _ulong, _char_p)
_umount2 = _bind("umount2", _char_p, _int)
_unshare = _bind("unshare", _int)
_setns = _bind("setns", _int, _int)
_sethostname = _bind("sethostname", _char_p, ctypes.c_size_t)
_tee = _bind("tee", _int, _int, ctypes.c_size_t, ctypes.c_uint)
_prctl = _bind("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_set_name = _bind("prctl", _int, _char_p)
_signal = _libc["signal"]
_signal.argtypes = (_int, _void_p)
_signal.restype = _void_p


def _bind_number(*arguments: type) -> "ctypes._CFuncPtr":  # type: ignore[name-defined]
    """Bind a call that libc has no function for; the number goes first, in every call."""
    function = _libc["syscall"]
    function.argtypes = (_long, *arguments)
    function.restype = _long
    return function


_uint, _size = ctypes.c_uint, ctypes.c_size_t
_capset = _bind_number(_void_p, _void_p)
_seccomp = _bind_number(_uint, _uint, _void_p)
_keyctl = _bind_number(_long, _void_p)
_close_range = _bind_number(_uint, _uint, _int)
_pivot_root = _bind_number(_char_p, _char_p)
_open_tree = _bind_number(_int, _char_p, _uint)
_move_mount = _bind_number(_int, _char_p, _int, _char_p, _uint)
_fsopen = _bind_number(_char_p, _uint)
_fsconfig = _bind_number(_int, _uint, _char_p, _char_p, _int)
_fsmount = _bind_number(_int, _uint, _uint)
_mount_setattr = _bind_number(_int, _char_p, _uint, _void_p, _size)
_openat2 = _bind_number(_int, _char_p, _void_p, _size)

# clone3 must not give up the interpreter lock in between: the child is a copy of this very thread, which holds it.
_held = ctypes.PyDLL(None, use_errno=True)
_clone = _held["syscall"]
_clone.restype = _long


def _fail(what: str) -> OSError:
    return OSError(ctypes.get_errno(), what)


def _path(path: str | bytes) -> bytes:
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


class _CloneArgs(ctypes.Structure):
    """`struct clone_args` of clone3(2), all members 64 bits."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapHeader(ctypes.Structure):
    """`struct __user_cap_header_struct` of capset(2)."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    """`struct __user_cap_data_struct`; two of them hold 64 bits."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _SockFprog(ctypes.Structure):
    """`struct sock_fprog` of seccomp(2)."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


_MOUNT_ATTR_SIZE = ctypes.sizeof(_MountAttr)
_OPEN_HOW_SIZE = ctypes.sizeof(_OpenHow)

# --- processes and namespaces ------------------------------------------------------------------------------------


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork into new namespaces (clone3(2)); return (pid, pidfd) in the parent and (0, -1) in the child.

    Only for a process with one thread. The child has its own copy of memory, like after fork(2), but none of
    Python's after-fork hooks run: it may set itself up and exec, nothing else.

    Args:
        flags: CLONE_NEW* flags; CLONE_PIDFD is added.
        cgroup_fd: a cgroup v2 directory to be born in, or -1.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=17)
    if cgroup_fd >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    pid = _clone(_long(_NR["clone3"]), ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments)))
    if pid < 0:
        raise _fail(f"clone3 flags={flags:#x}")
    return pid, pidfd.value


def clone_sibling() -> int:
    """Fork a further child of this process's parent (clone(2), CLONE_PARENT); return its pid, 0 in the child.

    It is born in the PID namespace that `setns` chose for children. As for `clone3`, no after-fork hooks run. Not by
    clone3: seccomp filters refuse that, since they cannot look at its flags.
    """
    pid = _clone(_long(_NR["clone"]), _ulong(CLONE_PARENT), None, None, None, None)
    if pid < 0:
        raise _fail("clone flags=CLONE_PARENT")
    return int(pid)


def unshare(flags: int) -> None:
    """Leave shared namespaces for new ones (unshare(2))."""
    if _unshare(flags) < 0:
        raise _fail(f"unshare flags={flags:#x}")


def setns(fd: int, flags: int, what: str = "") -> None:
    """Join the namespace(s) of an nsfs fd or pidfd (setns(2))."""
    if _setns(fd, flags) < 0:
        raise _fail(f"setns {what or hex(flags)}")


def sethostname(name: str) -> None:
    """Set the hostname of the UTS namespace (sethostname(2))."""
    encoded = name.encode()
    if _sethostname(encoded, len(encoded)) < 0:
        raise _fail(f"sethostname {name}")


def prctl(option: int, arg2: int = 0, arg3: int = 0, what: str = "") -> int:
    """Operate on the process (prctl(2)); return the call's value."""
    result: int = _prctl(option, arg2, arg3, 0, 0)
    if result < 0:
        raise _fail(f"prctl {what or option}")
    return result


def set_name(name: str) -> None:
    """Set the thread's name as shown by ps (at most 15 bytes)."""
    _set_name(PR_SET_NAME, name.encode()[:15])


_arguments: list[int] = []


def set_title(title: str) -> None:
    """Overwrite the command line that ps shows (proc_pid_cmdline(5)), as far as the old one's length allows."""
    if not _arguments:  # a forked process has them at the same place
        fields = processes.stat_fields("self")
        _arguments.extend((int(fields[processes.ARGUMENTS_START]), int(fields[processes.ARGUMENTS_END])))
    start, end = _arguments
    text = title.encode()[: max(0, end - start - 1)]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capability sets of this thread (capset(2)); arguments are 64-bit masks."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(
        _CapData(effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF),
        _CapData(effective >> 32, permitted >> 32, inheritable >> 32),
    )
    if _capset(_NR["capset"], ctypes.byref(header), data) < 0:
        raise _fail("capset")


def seccomp_filter(program: ctypes.Array[ctypes.c_char], flags: int = 0) -> None:
    """Install a classic BPF program (seccomp(2)); `program` is a buffer made before (8 bytes an instruction)."""
    prog = _SockFprog(len(program) // 8, ctypes.addressof(program))
    if _seccomp(_NR["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(prog)) < 0:
        raise _fail("seccomp filter")


def seccomp_buffer(program: bytes) -> ctypes.Array[ctypes.c_char]:
    """Return a buffer for `seccomp_filter`."""
    return (ctypes.c_char * len(program)).from_buffer_copy(program)


def trim_heap() -> None:
    """Give free memory of the C library back to the kernel (malloc_trim(3)), where it has that."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def join_session_keyring() -> None:
    """Leave the inherited session keyring for an anonymous one (keyctl(2))."""
    if _keyctl(_NR["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        raise _fail("keyctl join_session_keyring")


def default_signal(number: int) -> None:
    """Put a signal's default action back (signal(2)), past what Python remembers of handlers."""
    _signal(number, None)


def close_from(first: int) -> None:
    """Close every fd from `first` on (close_range(2))."""
    if _close_range(_NR["close_range"], first, 0xFFFFFFFF, 0) < 0:
        raise _fail(f"close_range {first}")


# --- mounts ------------------------------------------------------------------------------------------------------


def mount(source: str | bytes, target: str | bytes, fstype: str, flags: int = 0, data: str | bytes = "") -> None:
    """Mount a file system or change a mount (mount(2))."""
    if _mount(_path(source), _path(target), fstype.encode(), flags, _path(data) or None) < 0:
        raise _fail(f"mount {os.fsdecode(target)}")


def umount(target: str | bytes, flags: int = 0) -> None:
    """Unmount (umount2(2))."""
    if _umount2(_path(target), flags) < 0:
        raise _fail(f"umount {os.fsdecode(target)}")


def pivot_root(new: str, old: str) -> None:
    """Change the root mount (pivot_root(2))."""
    if _pivot_root(_NR["pivot_root"], _path(new), _path(old)) < 0:
        raise _fail(f"pivot_root {new}")


def open_tree(dir_fd: int, path: str | bytes, flags: int) -> int:
    """Open a mount, or with OPEN_TREE_CLONE a detached copy of it, as an fd (open_tree(2))."""
    fd: int = _open_tree(_NR["open_tree"], dir_fd, _path(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _fail(f"open_tree {os.fsdecode(path)}")
    return fd


def move_mount(from_fd: int, to_fd: int, what: str = "", to_path: str = "") -> None:
    """Attach the detached mount `from_fd` on `to_fd` (or on `to_path` below it) (move_mount(2))."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    if _move_mount(_NR["move_mount"], from_fd, b"", to_fd, _path(to_path), flags) < 0:
        raise _fail(f"mount {what or to_path}")


def fsopen(fstype: str) -> int:
    """Begin to configure a new file system; return its context's fd (fsopen(2))."""
    fd: int = _fsopen(_NR["fsopen"], fstype.encode(), FSOPEN_CLOEXEC)
    if fd < 0:
        raise _fail(f"fsopen {fstype}")
    return fd


def fsconfig(fd: int, key: str, value: str | bytes | None = None) -> None:
    """Set one parameter of a file system context; a value of None sets a flag (fsconfig(2)); values < 256 bytes."""
    command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
    if _fsconfig(_NR["fsconfig"], fd, command, key.encode(), None if value is None else _path(value), 0) < 0:
        raise _fail(f"fsconfig {key}={'' if value is None else os.fsdecode(value)}")


def fscreate(fd: int, what: str) -> None:
    """Create the configured file system's superblock (fsconfig(2) CMD_CREATE)."""
    if _fsconfig(_NR["fsconfig"], fd, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
        raise _fail(f"mount {what}")


def fsmount(fd: int, attributes: int, what: str) -> int:
    """Return a detached mount's fd of a created file system (fsmount(2)); attributes are MOUNT_ATTR_*."""
    result: int = _fsmount(_NR["fsmount"], fd, FSMOUNT_CLOEXEC, attributes)
    if result < 0:
        raise _fail(f"fsmount {what}")
    return result


def mount_setattr(
    fd: int, path: str, set_: int, clear: int = 0, propagation: int = 0, *, recursive: bool = False, userns_fd: int = 0
) -> None:
    """Change attributes of a mount or tree (mount_setattr(2))."""
    attributes = _MountAttr(set_, clear, propagation, userns_fd)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    number = _NR["mount_setattr"]
    if _mount_setattr(number, fd, _path(path), flags, ctypes.byref(attributes), _MOUNT_ATTR_SIZE) < 0:
        raise _fail(f"mount_setattr {path or fd} set={set_:#x}")


# --- files -------------------------------------------------------------------------------------------------------


def openat2(dir_fd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open with a confined path resolution (openat2(2)); return the fd, close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd: int = _openat2(_NR["openat2"], dir_fd, _path(path), ctypes.byref(how), _OPEN_HOW_SIZE)
        if fd >= 0:
            return fd
        if ctypes.get_errno() != 11:  # EAGAIN: a rename raced with the resolution; openat2(2) says to try again
            raise _fail(f"open {os.fsdecode(path)}")


def tee(source: int, target: int, length: int) -> int:
    """Copy what lies in a pipe into another one, without taking it or waiting (tee(2)); return how much."""
    copied: int = _tee(source, target, length, os.SPLICE_F_NONBLOCK)
    if copied < 0:
        raise _fail(f"tee {source}")
    return copied
