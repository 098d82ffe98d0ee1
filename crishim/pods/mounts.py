"""Host paths of the request's mounts: resolved and, where missing, made, before the plan is computed.

A symlink on the host is resolved here, once, in the daemon's view; a start follows none any more. (The status shows the
request's text, its verbose info the resolved path.) A missing host path becomes a directory, as users of `hostPath`
volumes expect. The target is the executor's: it stays inside the container's root whatever the image holds.

Out of scope: what is wrong with a mount whatever the host has (`admission.mounts`).
Source: CRI `Mount`.
"""

import contextlib
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
    """Make a resolved path, following no link that was put there since then."""
    above = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in path.strip("/").split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=above)
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            os.close(above)
            above = below
    except NotADirectoryError:
        raise InvalidArgumentError(field, f"{path}: a component of the path is no directory") from None
    except OSError as error:
        raise KernelError(f"{field}: mkdir {path}", error.errno or errno.EIO) from None
    finally:
        os.close(above)
