"""What kind of file system a path is on (statfs(2))."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_statfs = _libc["statfs"]
_statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)

# linux/magic.h, and the file systems' own sources: those that answer from this machine's memory or disks
_LOCAL = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x01021994,  # tmpfs, devtmpfs
        0x858458F6,  # ramfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x1CD1,  # devpts
        0x19800202,  # mqueue
        0x6E736673,  # nsfs
        0x958458F6,  # hugetlbfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0x73717368,  # squashfs
        0xE0F5E1E2,  # erofs
        0x9660,  # iso9660
        0x4D44,  # vfat
        0x794C7630,  # overlayfs
    }
)


def is_local(path: str) -> bool:
    """Tell whether `path` is on a file system that waits for no other machine and no process; False if it is gone."""
    answer = (ctypes.c_long * 32)()
    return _statfs(os.fsencode(path), ctypes.byref(answer)) == 0 and answer[0] in _LOCAL
