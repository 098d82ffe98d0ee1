"""Host paths of the request's mounts: resolved and, where missing, made, before the plan is computed.

A symlink on the host is resolved here, once, in the daemon's view (the status shows the request's text, its verbose
info the resolved path); a missing host path becomes a directory, as users of `hostPath` volumes expect. The target is
the executor's: it stays inside the container's root whatever the image holds.

Out of scope: propagation, recursive read-only, image volumes and idmapped mounts, which this version refuses.
Source: CRI `Mount`; field cases C1, C4.
"""

import dataclasses
import errno
import os
from collections.abc import Sequence
from typing import Protocol

from crishim.engine.plan.request import Mount, Propagation
from crishim.errors import InvalidArgumentError, KernelError


class Collector(Protocol):
    """Where problems go (`validate.Problems`)."""

    def bad(self, field: str, problem: str) -> None:
        """Add a problem of a field."""

    def absent(self, field: str, problem: str) -> None:
        """Add what the CRI has and this version has not."""


def mount_problems(problems: Collector, mounts: Sequence[Mount]) -> None:
    """Report what is wrong with mounts, without looking at the host."""
    for n, mount in enumerate(mounts):
        where = f"config.mounts[{n}]"
        if not mount.container_path.startswith("/"):
            problems.bad(f"{where}.container_path", f"must be an absolute path, is {mount.container_path!r}")
        elif os.path.normpath(mount.container_path) in {"/", "//"}:
            problems.bad(f"{where}.container_path", "is the root itself, which is the image's")
        _kind(problems, where, mount)
        if mount.recursive_read_only:
            if not mount.readonly or mount.propagation is not Propagation.PRIVATE:
                problems.bad(f"{where}.recursive_read_only", "needs readonly and private propagation")
            else:
                problems.absent(
                    f"{where}.recursive_read_only", "is not there yet (the runtime handler's features say so)"
                )
        if mount.uid_mappings or mount.gid_mappings:
            name = "uidMappings" if mount.uid_mappings else "gidMappings"
            problems.absent(f"{where}.{name}", "idmapped mounts come with user namespaces, which are not there yet")
        if mount.mount_options:
            problems.absent(f"{where}.mount_options", "are not there yet (the runtime's features say so)")


def _kind(problems: Collector, where: str, mount: Mount) -> None:
    if mount.image is not None:
        if mount.host_path:
            problems.bad(f"{where}.image", "stands beside host_path; a mount is one or the other")
        problems.absent(f"{where}.image", "image volumes are not there yet; copy the files into a host path")
    elif not mount.host_path.startswith("/"):
        problems.bad(f"{where}.host_path", f"must be an absolute path, is {mount.host_path!r}")
    if mount.propagation is not Propagation.PRIVATE:
        name = mount.propagation.name
        problems.absent(f"{where}.propagation", f"{name} is not there yet; PROPAGATION_PRIVATE is")


def resolve(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return the mounts with host paths resolved; make the missing ones as directories (mode 0755).

    Raises:
        InvalidArgumentError: a host path is a loop of links or leads through a file.
        KernelError: it could not be made.
    """
    return tuple(_resolve_one(n, mount) for n, mount in enumerate(mounts))


def _resolve_one(n: int, mount: Mount) -> Mount:
    field = f"config.mounts[{n}].host_path"
    try:
        path = os.path.realpath(mount.host_path, strict=True)
    except FileNotFoundError:
        path = os.path.realpath(mount.host_path)
        _make(field, path)
    except OSError as error:
        raise InvalidArgumentError(field, f"{mount.host_path}: {os.strerror(error.errno or 0)}") from None
    except ValueError:
        raise InvalidArgumentError(field, f"{mount.host_path!r} is no path") from None
    return mount if path == mount.host_path else dataclasses.replace(mount, host_path=path)


def _make(field: str, path: str) -> None:
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise InvalidArgumentError(field, f"{path}: a component of the path is no directory") from None
    except OSError as error:
        raise KernelError(f"{field}: mkdir {path}", error.errno or errno.EIO) from None
