"""Files of layers copied with all that belongs to them, as overlayfs would copy them up: owner, mode, xattrs, times."""

import errno
import os
import shutil
import stat

from crishim.images.merged import Found

_OVERLAY = "trusted.overlay."


def copy_attributes(source: int | str, fd: int) -> None:
    """Give an open file or directory the owner, mode, xattrs and times of another."""
    info = os.stat(source)
    os.fchown(fd, info.st_uid, info.st_gid)
    os.fchmod(fd, stat.S_IMODE(info.st_mode))
    for name, value in xattrs(source):
        os.setxattr(fd, name, value)
    os.utime(fd, ns=(info.st_mtime_ns, info.st_mtime_ns))


def xattrs(source: int | str) -> list[tuple[str, bytes]]:
    """Return the extended attributes that belong to a file, not to overlayfs or the host."""
    try:
        names = [name for name in os.listxattr(source) if not name.startswith((_OVERLAY, "security.selinux"))]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # this file system has no xattrs
            return []
        raise
    return [(name, os.getxattr(source, name)) for name in names]


def copy(found: Found, holder: int, name: str) -> int:
    """Copy what is no directory into the directory `holder`; return its bytes on disk, 0 for what holds none."""
    info = found.info
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(found.name, dir_fd=found.parent_fd), name, dir_fd=holder)
    elif stat.S_ISREG(info.st_mode):
        source = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.parent_fd)
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=holder)
        with open(source, "rb") as reader, open(target, "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            copy_attributes(source, target)
        return info.st_blocks * 512
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=holder)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=holder, follow_symlinks=False)
    os.utime(name, ns=(info.st_mtime_ns, info.st_mtime_ns), dir_fd=holder, follow_symlinks=False)
    return 0
