"""What a pod leaves in the kernel when its keeper did not clean up: cgroup, pinned namespace, mounts, directory.

Blocking; called in a thread. Each function is idempotent: what is gone already is fine.
Out of scope: links and addresses (network), and deciding that a pod is dead.
"""

import contextlib
import errno
import os
import shutil

from crishim.engine.plan.types import PodPlan
from crishim.errors import KernelError
from crishim.linux import calls
from crishim.linux.cgroups import apply
from crishim.paths import Paths


def remove_pod(plan: PodPlan, paths: Paths) -> None:
    """Kill and remove a pod's control group with all below it, its namespace's pin, its mounts and directory.

    Raises:
        KernelError: processes are left that cannot be killed.
    """
    try:
        apply.kill(plan.cgroup.directories, plan.cgroup.version)
        apply.remove(plan.cgroup.directories, patience=5.0)
    except OSError as error:
        raise KernelError(f"pod {plan.pod_id}: {error.strerror} {error.filename}", error.errno or errno.EIO) from None
    remove_pin(paths, plan.pod_id)
    remove_directory(paths, plan.pod_id)


def remove_pin(paths: Paths, pod_id: str) -> None:
    """Unmount and remove `<state>/ns/<id>`."""
    pin = paths.pinned_netns(pod_id)
    _unmount(pin)
    for path in (pin, os.path.dirname(pin)):
        with contextlib.suppress(OSError):
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def remove_directory(paths: Paths, pod_id: str) -> None:
    """Unmount what is mounted below `<state>/pods/<id>` and remove it."""
    _unmount(paths.shm(pod_id))
    shutil.rmtree(paths.pod(pod_id), ignore_errors=True)


def _unmount(path: str) -> None:
    """Detach all mounts stacked on a path."""
    for _ in range(16):
        try:
            calls.umount(path, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
        except OSError:
            return
