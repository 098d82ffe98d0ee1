"""A mount namespace in which nothing can be written: programs are loaded there, and return to the host's mounts.

What a process maps of a file keeps the mount that the file was opened on, also when the process has left that mount's
namespace. So a file that was mapped here can be opened for writing by no one through /proc/<pid>/exe or
/proc/<pid>/map_files (EROFS), whatever capabilities he has: the mount is in no namespace that anyone can enter.

Invariant: the host's namespace gets no mount, and none of its mounts is changed (mount attributes never propagate).

Sources: unshare(2), setns(2), mount_setattr(2), proc_pid_map_files(5).
"""

import os

from crishim.linux import calls


def make_read_only() -> None:
    """Give the calling thread a mount namespace of its own whose mounts are all read-only; for what it starts.

    Raises:
        OSError: EINVAL where the root is not a mount, EPERM without CAP_SYS_ADMIN.
    """
    calls.unshare(calls.CLONE_NEWNS)
    calls.mount_setattr(calls.AT_FDCWD, "/", calls.MOUNT_ATTR_RDONLY, 0, calls.MS_PRIVATE, recursive=True)


def enter(namespace: int, root: int) -> None:
    """Move this process of one thread into a mount namespace, `root` being its root and directory; closes both fds."""
    calls.setns(namespace, calls.CLONE_NEWNS, "the host's mount namespace")
    os.fchdir(root)
    os.chroot(".")
    os.close(namespace)
    os.close(root)
