"""How an agent comes to be: its program lies in a detached read-only tmpfs, and it is started with its socket and area.

A detached mount is nobody's path, so nobody can open the program for writing, through /proc/<pid>/exe neither; it works
where memfds may not be executed (vm.memfd_noexec) and where all file systems of the host are noexec. Out of scope:
what the agent is to do (`area`).
"""

import _socket
import fcntl
import os

from crishim.engine.agent import elf, layout
from crishim.linux import calls

_MODE = 0o500
_SPAWN_FDS = layout.AREA_FD + 1


def make_program(machine: str) -> int:
    """Return an O_RDONLY descriptor of the agent's program; keep it for all agents of this process.

    Raises:
        OSError: the file system could not be made.
    """
    context = calls.fsopen("tmpfs")
    try:
        calls.fsconfig(context, "size", "64k")
        calls.fsconfig(context, "nr_inodes", "2")
        calls.fscreate(context, "the agent's program")
        mount = calls.fsmount(context, calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV, "the agent's program")
    finally:
        os.close(context)
    try:
        writing = os.open("agent", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE, dir_fd=mount)
        try:
            os.write(writing, elf.program(machine))
        finally:
            os.close(writing)  # execve of a file that is open for writing is ETXTBSY
        program = os.open("agent", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
        try:
            calls.mount_setattr(mount, "", calls.MOUNT_ATTR_RDONLY)
        except OSError:
            os.close(program)
            raise
    finally:
        os.close(mount)
    return program


def make_area(path: str) -> int:
    """Make an agent's area as a file on a tmpfs, and return its descriptor.

    All of it is reserved, since a store into a hole on a full tmpfs ends the process (SIGBUS); it must never be
    truncated. It stays reserved: an agent's whole area is two pages.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, layout.AREA_SIZE)
        os.pwrite(fd, layout.fresh_area(), 0)
    except OSError:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def make_socket(name: str) -> _socket.socket:
    """Bind an agent's socket to a name in the working directory (the instance's state; mode 0600).

    Names are relative on both ends: an answer goes to the name that rang, as the agent resolves it, and a path below
    /proc/self would be its own. The socket stays blocking, since its file is the agent's.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    old = os.umask(0o177)
    try:
        sock.bind(name)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock


def start(program: int, sock: int, area: int) -> int:
    """Start an agent in this process's namespaces and working directory; return its pid, a child of this process.

    Raises:
        OSError: it could not be started.
    """
    moved = [_above(fd) for fd in (program, sock, area)]
    try:
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            *((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)),
            (os.POSIX_SPAWN_DUP2, moved[1], layout.SOCKET),
            (os.POSIX_SPAWN_DUP2, moved[2], layout.AREA_FD),
        ]
        return os.posix_spawn(
            f"/proc/self/fd/{moved[0]}",
            ["crishim-agent"],
            {},
            file_actions=actions,
            setsid=True,
            setsigmask=_ALL_SIGNALS,
            setsigdef=_ALL_SIGNALS - _FIXED,
        )
    finally:
        for fd in moved:
            os.close(fd)


_FIXED = {9, 19}
_ALL_SIGNALS = set(range(1, 32)) | set(range(34, 65))  # 32 and 33 are glibc's own (nptl(7))


def _above(fd: int) -> int:
    """Return a copy of a descriptor that none of the agent's own numbers covers."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPAWN_FDS)
