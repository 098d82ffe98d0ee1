"""The daemon's process: from a configuration to a served socket, and from a signal to a clean end.

One event loop runs everything. What the parts are and in which order they come stands in `parts`; here are the
process's own things: log, limits, directories, locks, the store's file, signals, readiness. Invariant: containers
are never ended here; they and their keepers go on without a daemon.
"""

import asyncio
import gc
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from crishim import clock
from crishim.config.model import Config
from crishim.daemon import directories, limits, notify, signals
from crishim.daemon.dump import dump
from crishim.daemon.lock import acquire
from crishim.daemon.parts import Parts
from crishim.daemon.reload import apply_log, reload
from crishim.errors import FailedPreconditionError, KernelError

# First, since it decides what structlog loads.
from crishim.log import get_logger
from crishim.pods import disk
from crishim.store.store import Store
from crishim.version import VERSION

log = get_logger("crishim.daemon")


def serve(config: Config, path: str | None = None, overrides: Mapping[str, Any] | None = None) -> int:
    """Serve until a signal ends the daemon; return the exit status.

    Args:
        config: of the instance.
        path: file that it came from, None for the default one; read again on SIGHUP.
        overrides: what flags gave, by dotted path.

    Raises:
        CrishimError: the daemon cannot serve, and why.
    """
    if os.geteuid() != 0:
        raise FailedPreconditionError("the daemon needs root: start it with sudo")
    began = clock.monotonic()
    prepare(config)
    with ExitStack() as stack:
        directories.make(config.paths)
        for place, what in (
            (config.paths.lock, f"the root {config.root}"),
            (f"{config.state}/lock", f"the state {config.state}"),
            (config.paths.image_lock, f"the image path {config.images.path or config.root}"),
        ):
            stack.callback(acquire(place, what).release)
        store = Store.open(config.paths.database)
        stack.callback(store.close)
        for text in store.problems:
            log.error("stored state was damaged", problem=text)
        return asyncio.run(Daemon(config, path, overrides or {}, store, began).run())


def prepare(config: Config) -> None:
    """Set up what belongs to the process: umask, signals, log, limits, and grpc's own environment."""
    gc.disable()  # until the start is over: loading modules makes much that stays and no garbage
    limits.set_umask()
    signals.settle()
    try:
        apply_log(config)
    except OSError as error:
        raise KernelError(f"open log.file {config.log.file}", error.errno or 0) from None
    limits.raise_descriptors()
    if limits.protect_from_oom() > limits.OOM_SCORE_ADJ:
        log.warning("the kernel does not allow the daemon a lower oom_score_adj", remedy="see 'crishim check'")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its chatter goes past the log, and waits for a reader
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # the daemon never forks Python code


class Daemon:
    """One run of the daemon's event loop."""

    def __init__(
        self, config: Config, path: str | None, overrides: Mapping[str, Any], store: Store, began: float
    ) -> None:
        self._config = config
        self._path = path
        self._overrides = overrides
        self._began = began
        self._state = (False, "starting")
        self._asked = asyncio.Event()
        self._parts = Parts(config, store, self._readiness)

    async def run(self) -> int:
        """Start, serve until asked to end, end."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(unhandled)
        with signals.handled(self._end, self._reload, self._dump):
            log.info("starting", version=VERSION, root=self._config.root, state=self._config.state)
            try:
                if await self._start():
                    await self._asked.wait()
            finally:
                self._state = (False, "stopping")
                notify.stopping("ending")
                await self._parts.end()
                log.info("ended")
        return 0

    async def _start(self) -> bool:
        """Start the parts; tell whether they all run (a signal may come in between)."""
        loop = asyncio.get_running_loop()
        starting = loop.create_task(self._parts.start(), name="start")
        asked = loop.create_task(self._asked.wait(), name="wait for the end")
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is not None:
                log.warning("the start had failed anyway", error=str(starting.exception()))
            return False
        await starting
        gc.freeze()  # what is loaded now stays: later collections need not look at it
        gc.enable()
        self._ready()
        log.info("ready", socket=self._config.socket_path, ms=round((clock.monotonic() - self._began) * 1000))
        return True

    def _ready(self) -> None:
        self._state = (True, "")
        notify.ready(f"serving on {self._config.socket_path}")

    def _readiness(self) -> tuple[bool, str]:
        """Return what `/readyz` says."""
        full = disk.problem(self._config.paths) if self._state[0] else ""
        return (False, full) if full else self._state

    def _end(self, name: str) -> None:
        log.info("asked to end", signal=name)
        self._asked.set()

    def _reload(self) -> None:
        log.info("reloading")
        notify.reloading()
        appliers = {"log": apply_log, "images": self._parts.apply_images}
        self._config = reload(self._config, self._path, self._overrides, appliers)
        notify.ready(f"serving on {self._config.socket_path}")

    def _dump(self) -> None:
        log.info("what the daemon is doing", stack=dump(self._parts.calls()))


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001  asyncio's signature
    """Log, once, what no task has handled."""
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else None
    log.error(context.get("message", "unhandled"), task=name, exc_info=context.get("exception"))
