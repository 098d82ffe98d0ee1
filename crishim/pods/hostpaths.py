"""Host paths of a request's mounts: resolved and looked at before the plan is computed, missing ones made after it.

A symlink on the host is resolved here, once, in the daemon's view; a start follows none any more. (The status shows the
request's text, its verbose info the resolved path.) A missing host path becomes a directory, as users of `hostPath`
volumes expect, once nothing is wrong with the request. The target is the executor's: it stays inside the container's
root whatever the image holds.

Everything here that touches the host's files runs in a thread of its own: a path may lie on a file server or a FUSE
process that does not answer, and the daemon serves on meanwhile, and ends too. All threads that others use as well
would be waiting there soon, as kubelet tries again for ever; so a request that failed like this gets a second thread
only when its first one has ended.

Out of scope: what is wrong with a mount whatever the host has (`admission.mounts`).
Source: CRI `Mount`.
"""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from crishim.engine.plan import host
from crishim.engine.plan.host import NOTHING, HostView
from crishim.errors import DeadlineExceededError, InvalidArgumentError, KernelError
from crishim.images.threads import in_thread
from crishim.pods.context import log
from crishim.problems import Problems
from crishim.request import ContainerConfig, Mount

SECONDS = 30.0
"""How long the host paths of one request may take to answer."""
T = TypeVar("T")

_silent: "dict[str, asyncio.Future[Any]]" = {}
"""What was given up but still runs, by the paths that it looks at."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The mounts with their host paths resolved, what the host tells of them, and which paths are not there yet."""

    mounts: tuple[Mount, ...] = ()
    view: HostView = NOTHING
    missing: tuple[tuple[str, str], ...] = ()


async def examine(problems: Problems, config: ContainerConfig) -> Examined:
    """Resolve and look at what a request names on the host; problems are noted by field.

    Raises:
        DeadlineExceededError: a path does not answer.
    """
    if not host.names_anything(config):
        return Examined()
    return await _answered(config, lambda: _examine(problems, config))


async def look(problems: Problems, config: ContainerConfig) -> HostView:
    """Look at what a request names on the host, whose paths have been resolved before.

    Raises:
        DeadlineExceededError: a path does not answer.
    """
    if not host.names_anything(config):
        return NOTHING
    return await _answered(config, lambda: host.look(problems, config))


async def make_missing(config: ContainerConfig, examined: Examined) -> None:
    """Make the paths that are not there as directories (mode 0755).

    Raises:
        InvalidArgumentError: something was put in the way since.
        KernelError: one could not be made.
        DeadlineExceededError: a path does not answer.
    """
    if examined.missing:
        await _answered(config, lambda: _make_all(examined.missing))


async def _answered(config: ContainerConfig, work: Callable[[], T]) -> T:
    paths = ", ".join(host.host_paths(config))
    try:
        async with asyncio.timeout(SECONDS):
            if paths in _silent:
                await asyncio.wait([_silent[paths]])
            running = asyncio.ensure_future(in_thread("host paths", work))
            try:
                return await asyncio.shield(running)
            finally:
                if not running.done() and paths not in _silent:
                    _silent[paths] = running
                    running.add_done_callback(functools.partial(_answers_again, paths))
    except TimeoutError:
        log.warning("host paths do not answer", paths=paths)
        raise DeadlineExceededError(f"one of these host paths did not answer within {SECONDS:g} s: {paths}") from None


def _answers_again(paths: str, work: "asyncio.Future[Any]") -> None:
    del _silent[paths]
    if not work.cancelled():
        work.exception()  # nobody waits for it any more


def _examine(problems: Problems, config: ContainerConfig) -> Examined:
    resolved, missing = [], []
    for n, mount in enumerate(config.mounts):
        field = f"config.mounts[{n}].host_path"
        path = _resolve(problems, field, mount.host_path)
        if path and not os.path.lexists(path):
            missing.append((field, path))
        resolved.append(mount if path in {"", mount.host_path} else dataclasses.replace(mount, host_path=path))
    mounts = tuple(resolved)
    return Examined(mounts, host.look(problems, dataclasses.replace(config, mounts=mounts)), tuple(missing))


def _resolve(problems: Problems, field: str, path: str) -> str:
    """Return where a path leads, there or not; "" where that cannot be said."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
    except OSError as error:
        problems.add(field, f"{path}: {os.strerror(error.errno or 0)}")
    except ValueError:
        problems.add(field, f"{path!r} is no path")
    return ""


def _make_all(missing: Sequence[tuple[str, str]]) -> None:
    for field, path in missing:
        _make(field, path)


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
