"""What only the host can tell of a request: the kinds of its host paths, its device nodes, its seccomp profile.

Looking may take as long as a file server or a FUSE process wants, so it is done in a thread and never by the planner.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from crishim.engine.plan.types import DeviceNode
from crishim.errors import CrishimError, UnimplementedError
from crishim.linux import devices
from crishim.linux.filesystems import is_local
from crishim.linux.seccomp.profile import Profile, load_profile
from crishim.problems import Problems
from crishim.request import ContainerConfig, ContainerSecurity, Device, Mount, ProfileType, SecurityProfile

SECCOMP_FIELD = "config.linux.security_context.seccomp.localhost_ref"


@dataclass(frozen=True, slots=True)
class HostView:
    """What was found.

    Attributes:
        directories: those of the mounts' host paths that are directories; the rest are files, sockets, devices.
        nodes: the device nodes that the request, or its privilege, asks for.
        local: no mount's host path is on a file system that waits for another machine or a process.
        profile: the seccomp profile that the request names by its path.
    """

    directories: frozenset[str] = frozenset()
    nodes: tuple[DeviceNode, ...] = ()
    local: bool = True
    profile: Profile | None = None


NOTHING = HostView()
"""Of a request that names nothing on the host."""


def look(problems: Problems, config: ContainerConfig) -> HostView:
    """Look at what a request names on the host, its mounts resolved; blocks.

    Args:
        problems: of the request; what is not there or cannot be used is added.
        config: the request.
    """
    paths = {mount.host_path for mount in config.mounts}
    return HostView(
        directories=_directories(problems, config.mounts),
        nodes=_nodes(problems, config.devices, privileged=config.security.privileged),
        local=all(is_local(_nearest(path)) for path in paths),
        profile=_profile(problems, config.security),
    )


def names_anything(config: ContainerConfig) -> bool:
    """Tell whether there is anything of a request to look at."""
    security = config.security
    return bool(config.mounts or config.devices or security.privileged or _is_named(security.seccomp))


def host_paths(config: ContainerConfig) -> list[str]:
    """Return the host paths of a request."""
    security = config.security
    profile = [security.seccomp.localhost_ref] if security.seccomp is not None and _is_named(security.seccomp) else []
    return [mount.host_path for mount in config.mounts] + [item.host_path for item in config.devices] + profile


def _is_named(profile: SecurityProfile | None) -> bool:
    return profile is not None and profile.profile_type is ProfileType.LOCALHOST


def _profile(problems: Problems, security: ContainerSecurity) -> Profile | None:
    named = security.seccomp
    if named is None or not _is_named(named) or security.privileged:
        return None
    try:
        return load_profile(named.localhost_ref)
    except UnimplementedError as error:
        problems.lacks(SECCOMP_FIELD, str(error))
    except CrishimError as error:
        problems.add(SECCOMP_FIELD, str(error))
    return None


def _directories(problems: Problems, mounts: Sequence[Mount]) -> frozenset[str]:
    """Return the host paths that are directories, or will be made as such since nothing is there."""
    found = set()
    for number, mount in enumerate(mounts):
        try:
            if stat.S_ISDIR(os.stat(mount.host_path).st_mode):
                found.add(mount.host_path)
        except FileNotFoundError:
            found.add(mount.host_path)
        except (OSError, ValueError) as error:
            reason = os.strerror(getattr(error, "errno", 0) or errno.EINVAL)
            problems.add(f"config.mounts[{number}].host_path", f"{mount.host_path}: {reason}")
    return frozenset(found)


def _nearest(path: str) -> str:
    """Return the path, or the first one above it that is there."""
    while not os.path.lexists(path) and path not in {"", "/"}:
        path = os.path.dirname(path)
    return path


def _nodes(problems: Problems, wanted: Sequence[Device], *, privileged: bool) -> tuple[DeviceNode, ...]:
    """Return the device nodes that a request asks for; a privileged container gets all of the host's."""
    found: dict[str, DeviceNode] = {}
    if privileged:
        for device in devices.host_devices():
            found[device.path] = _node(device, device.path, "rwm")
    for number, item in enumerate(wanted):
        inside = os.path.normpath(item.container_path).removeprefix("/dev/")
        try:
            listed = devices.lookup(item.host_path)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            problems.add(f"config.devices[{number}].host_path", f"{item.host_path}: {reason}")
            continue
        except ValueError:  # a NUL in it, which the admission tells
            continue
        for device in listed:
            path = f"{inside}/{device.path}" if device.path else inside
            found[path] = _node(device, path, item.permissions)
    return tuple(found.values())


def _node(device: devices.Device, path: str, access: str) -> DeviceNode:
    return DeviceNode(path, device.kind, device.major, device.minor, device.mode, device.uid, device.gid, access)
