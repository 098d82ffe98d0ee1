"""Which control groups the daemon and the keepers live in, and their removal when nothing needs them any more.

Under systemd (Delegate=yes, KillMode=process) both are leaves of the unit's group, so that systemd sees all that
belongs to the unit and cgroup v2 finds no process in an inner group; elsewhere the keepers' group lies below the
instance's own parent. Out of scope: the pods' groups (engine, pods).
"""

import contextlib
import os
from collections.abc import Mapping

from crishim.errors import KernelError
from crishim.linux import calls
from crishim.linux.cgroups import apply
from crishim.linux.cgroups.layout import Layout
from crishim.paths import Paths

KEEPERS = "keepers"
DAEMON = "daemon"


def unit_group(layout: Layout, environment: Mapping[str, str]) -> str:
    """Return the group of the systemd unit that the daemon is, or "" if systemd did not start it."""
    if "INVOCATION_ID" not in environment or layout.unified is None:
        return ""
    own = layout.unified.own
    own = own.removesuffix(f"/{DAEMON}")  # with DelegateSubgroup=daemon it is in its leaf already
    return own if own.endswith(".service") else ""


def keepers_group(layout: Layout, parent: str, environment: Mapping[str, str]) -> str:
    """Return the group for the spawner and all keepers.

    Args:
        layout: the host's control groups.
        parent: the instance's own parent group, used where there is no unit.
        environment: the daemon's environment.
    """
    return f"{unit_group(layout, environment) or parent}/{KEEPERS}"


def enter_leaf(layout: Layout, environment: Mapping[str, str]) -> None:
    """Move the daemon into its leaf of the unit's group, where cgroup v2 asks for it; raises KernelError."""
    unit = unit_group(layout, environment)
    if layout.version != 2 or layout.unified is None or not unit or layout.unified.own.endswith(f"/{DAEMON}"):
        return
    directory = layout.unified.directory(f"{unit}/{DAEMON}")
    try:
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
    except OSError as error:
        raise KernelError(f"move the daemon into {directory}", error.errno or 0) from None


def remove(layout: Layout, keepers: str, parent: str) -> None:
    """Remove the keepers' group and the instance's parent where nothing is left in them."""
    with contextlib.suppress(OSError):  # a keeper is on its way out: the next clean end removes the group
        apply.remove(layout.directories(keepers))
    for directory in layout.directories(parent):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def unmount_namespaces(paths: Paths) -> None:
    """Unmount the directory of pinned namespaces, all that is stacked there; it must hold no pin."""
    with contextlib.suppress(OSError):  # EINVAL: nothing is mounted there (any more)
        while True:
            calls.umount(paths.namespaces, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
