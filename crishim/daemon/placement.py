"""Which control group the spawner and the keepers live in, and its removal when nothing needs it any more.

It lies below the instance's own parent, never in the group of a systemd unit: that holds the daemon alone, so systemd
finds no group below it, which cgroup v2 would not let it put the next daemon above, and `systemctl kill` reaches
nothing else. Foreign groups at the top of the hierarchy systemd leaves alone. Where systemd watches a hierarchy
without controllers beside v1, they leave the unit's group there too (`Layout.watched`). Out of scope: the pods' groups
(engine, pods).
"""

import contextlib
import os

from crishim.linux import calls
from crishim.linux.cgroups import apply
from crishim.linux.cgroups.layout import Layout
from crishim.log import get_logger
from crishim.paths import Paths

KEEPERS = "keepers"
_EARLIER = (KEEPERS, "daemon")
"""What earlier versions made below the unit's group."""

log = get_logger("crishim.daemon")


def keepers_group(parent: str) -> str:
    """Return the group for the spawner and all keepers, below the instance's own parent group."""
    return f"{parent}/{KEEPERS}"


def leave_unit(layout: Layout, keepers: str) -> None:
    """Move what an earlier version put below the unit's group, if this process is in one, to the keepers' group.

    The unit's group then holds this process alone and passes no controllers on, so systemd can put the next one there.
    """
    unified = layout.unified
    if unified is None or not unified.own.endswith(".service"):
        return
    own = unified.directory(unified.own)
    earlier = [place for place in (f"{own}/{name}" for name in _EARLIER) if os.path.isdir(place)]
    for place in earlier:
        try:
            for pid in apply.pids((place,)):
                with contextlib.suppress(ProcessLookupError):
                    apply.write(unified.directory(keepers), "cgroup.procs", str(pid))
            os.rmdir(place)
        except OSError as error:
            log.warning("a group of an earlier version stays in the unit", group=place, error=str(error))
    if not earlier:
        return
    with contextlib.suppress(OSError):  # groups of somebody else's are below it
        enabled = apply.read(own, "cgroup.subtree_control").decode().split()
        apply.write(own, "cgroup.subtree_control", " ".join(f"-{name}" for name in enabled))


def remove(layout: Layout, keepers: str, parent: str) -> None:
    """Remove the keepers' group and the instance's parent where nothing is left in them."""
    with contextlib.suppress(OSError):  # a keeper is on its way out: the next clean end removes the group
        apply.remove((*layout.directories(keepers), *layout.watched(keepers)))
    for directory in (*layout.directories(parent), *layout.watched(parent)):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def unmount_namespaces(paths: Paths) -> None:
    """Unmount the directory of pinned namespaces, all that is stacked there; it must hold no pin."""
    with contextlib.suppress(OSError):  # EINVAL: nothing is mounted there (any more)
        while True:
            calls.umount(paths.namespaces, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
