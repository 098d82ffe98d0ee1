"""The acting half of control groups: make, fill, join, freeze, kill, count and remove a group.

It runs in the spawner's and keepers' tiny processes, so it imports nothing but os, errno and time, and takes plain
lists of strings: `dirs` is `Layout.directories(group)` (the v2 directory first wherever there is one), `version` is
`Layout.version`. Out of scope: deciding values (`settings`) and the v2 device program (`bpf`).

Errors are `OSError(errno, what, path)`, where `what` is like `write memory.max=4096`. Functions that take something
away (`kill`, `thaw`, `remove`) succeed for what is already gone.

Sources: admin-guide/cgroup-v1/*.rst and cgroup-v2.rst of the kernel; cgroups(7).
"""

from crishim.linux.cgroups.ending import freeze, is_empty, kill, oom_kills, remove, thaw
from crishim.linux.cgroups.files import children, pids, read, write, write_all
from crishim.linux.cgroups.making import join_self, join_watched, leaf, make

__all__ = [
    "children",
    "freeze",
    "is_empty",
    "join_self",
    "join_watched",
    "kill",
    "leaf",
    "make",
    "oom_kills",
    "pids",
    "read",
    "remove",
    "thaw",
    "write",
    "write_all",
]
