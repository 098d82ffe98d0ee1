"""What lies around an instance: disks, firewall, directories. For `crishim check`, which judges it.

Invariant: looking changes nothing of the host (what is tried is tried in namespaces of its own) and never raises.
"""

import os
from dataclasses import dataclass, replace

from crishim.config.model import Config
from crishim.errors import InvalidArgumentError, KernelError
from crishim.network import host
from crishim.network.host import Barrier, Lack
from crishim.network.plan import plan_subnets


@dataclass(frozen=True, slots=True)
class Trial:
    """What was tried (`trial`): why it did not work, "" where it did; None where it was not tried."""

    unpacking: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `look` saw. Sizes in bytes; None is "could not be found out".

    Args:
        root_fstype: file system of the root directory, or of the nearest directory above that exists.
        root_free: free bytes there.
        state_fstype: file system of the state directory.
        images_fstype: file system of the image path, if the configuration has one.
        images_free: free bytes there.
        barriers: firewall chains that drop forwarded packets by default.
        lacks: what the pods' network needs and the host has not; looked at if the network is enabled.
        trial: what was tried with a layer and a container (`trial`).
    """

    root_fstype: str = ""
    root_free: int | None = None
    state_fstype: str = ""
    barriers: tuple[Barrier, ...] | None = ()
    lacks: tuple[Lack, ...] | None = ()
    images_fstype: str = ""
    images_free: int | None = None
    trial: Trial = Trial()


def look(config: Config) -> Surroundings:
    """Look at disks, firewall and directories; changes nothing and never raises."""
    root, state = _existing(config.root), _existing(config.state)
    wanted = config.network.enabled
    barriers, lacks = (_barriers(config), _lacks(config)) if wanted else ((), ())
    seen = Surroundings(_fstype(root), _free(root), _fstype(state), barriers, lacks)
    if not config.images.path:
        return seen
    images = _existing(config.images.path)
    return replace(seen, images_fstype=_fstype(images), images_free=_free(images))


def _free(path: str) -> int | None:
    """Return the bytes that are free for use on the file system of a directory."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def _existing(path: str) -> str:
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path) or "/"
    return os.path.realpath(path)


def _fstype(path: str) -> str:
    """Return the type of the file system of a directory: of the longest mount point above it."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = left.split(" ")[4]
                covers = path == point or path.startswith(point.rstrip("/") + "/")
                if covers and len(point) >= len(best):
                    best, kind = point, right.split(" ")[0]
    except OSError:
        return ""
    return kind


def _barriers(config: Config) -> tuple[Barrier, ...] | None:
    try:
        return host.barriers(config.network.bridge)
    except KernelError:
        return None


def _lacks(config: Config) -> tuple[Lack, ...] | None:
    try:
        return host.lacks(plan_subnets(config.network.subnets))
    except InvalidArgumentError:
        return None  # the configuration's own check says so
