"""Host paths of the request's mounts: resolved and, where missing, made, before the plan is computed.

A symlink on the host is resolved here, once, in the daemon's view (the status shows the request's text, its verbose
info the resolved path); a missing host path becomes a directory, as users of `hostPath` volumes expect. The target is
the executor's: it stays inside the container's root whatever the image holds.

Out of scope: what is wrong with a mount whatever the host has (`admission.mounts`).
Source: CRI `Mount`; field cases C1, C4.
"""

import dataclasses
import errno
import os
from collections.abc import Sequence

from crishim.errors import InvalidArgumentError, KernelError
from crishim.request import Mount


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
