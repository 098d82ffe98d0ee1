"""A small process that runs an OCI runtime on a bundle, once per line of its stdin, and says how long it took.

usage: python -m scripts.benchlib.ociloop PROGRAM BUNDLE [legacy]

`run` is the fastest way that crun and runc have to create, start, wait for and delete a container: one program start
instead of three. `legacy`: the process leaves for a mount namespace in which the v2 hierarchy of a hybrid host is
unmounted, because crun 1.8 takes such a host for a v2 one. Time is from before the program's start to after its end.
"""

import os
import sys
import time

from crishim.linux import calls

UNIFIED = "/sys/fs/cgroup/unified"


def main() -> None:
    """Serve stdin until its end."""
    program, bundle, *rest = sys.argv[1:]
    if rest:
        calls.unshare(calls.CLONE_NEWNS)
        calls.mount("", "/", "", calls.MS_REC | calls.MS_PRIVATE, "")
        if os.path.ismount(UNIFIED):
            calls.umount(UNIFIED, calls.MNT_DETACH)
    name = f"bench-{os.getpid()}"
    argv = [program, "--root", f"{bundle}/state", "run", "--bundle", bundle, name]
    for _ in sys.stdin:
        before = time.perf_counter_ns()
        pid = os.posix_spawn(program, argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter_ns() - before
        print(took if status == 0 else f"failed with status {os.waitstatus_to_exitcode(status)}", flush=True)


main()
