"""A test's view of one instance: pods and containers made with a line each, and removed at the end.

Everything is async, as scenarios do several things at once. A test is an `async def` that takes `world`; the hook in
`tests/conftest.py` runs it and opens the client around it.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tests.support import layout
from tests.support.busybox import base_entries
from tests.support.configs import Config, container_config, pod_config
from tests.support.cri import Cri, log_text
from tests.support.instance import Instance
from tests.support.registry import Registry

_COUNT = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that the test made."""

    id: str
    config: Config

    def log(self, name: str) -> str:
        """Return the path of a container's log."""
        return os.path.join(self.config["log_directory"], f"{name}.log")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a container ended: `code` and `status` from ContainerStatus, the streams from its log."""

    code: int
    stdout: str
    stderr: str
    status: Any


class World:
    """Makes pods and containers on one instance; an async context manager."""

    def __init__(self, instance: Instance, image: str, registry: Registry) -> None:
        self.instance = instance
        self.image = image
        self._registry = registry
        self._pods: list[str] = []
        self.cri: Cri

    async def __aenter__(self) -> Self:
        self.cri = Cri(self.instance.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for pod in self._pods:
                await self.cri.remove_pod(pod)
        finally:
            await self.cri.close()
            del self.cri

    async def reconnect(self) -> None:
        """Open a new channel after the daemon was restarted."""
        await self.cri.close()
        self.cri = Cri(self.instance.socket)

    async def pod(
        self,
        name: str = "",
        *,
        security: Mapping[str, Any] | None = None,
        sysctls: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Pod:
        """Run a pod; `security` is the sandbox's security context, `more` further fields of its config."""
        name = name or f"pod{next(_COUNT)}"
        directory = f"{self.instance.logs}/{name}-{next(_COUNT)}"
        linux = {"security_context": security or {}, "sysctls": dict(sysctls or {})}
        config = pod_config(name, log_directory=directory, linux=linux, **more)
        pod = Pod(await self.cri.run_pod(config), config)
        self._pods.append(pod.id)
        return pod

    def config(
        self,
        command: str | Sequence[str],
        *,
        name: str = "",
        image: str = "",
        security: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Config:
        """Return a container config; a string is a shell script, a sequence an argv."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        linux = {"security_context": security or {}, "resources": resources or {}}
        return container_config(name or f"c{next(_COUNT)}", image or self.image, argv, linux=linux, **more)

    async def run(self, pod: Pod, command: str | Sequence[str], **more: Any) -> str:
        """Create and start a container; return its id. Keywords as in `config`."""
        return await self.cri.run(pod.id, self.config(command, **more), pod.config)

    async def once(self, command: str | Sequence[str], *, pod: Pod | None = None, **more: Any) -> Outcome:
        """Run a container to its end, in a pod of its own if none is given."""
        where = pod or await self.pod()
        config = self.config(command, **more)
        container = await self.cri.run(where.id, config, where.config)
        status = await self.cri.wait_exit(container)
        path = where.log(config["metadata"]["name"])
        stdout, stderr = (log_text(path, stream).decode("utf-8", "surrogateescape") for stream in ("stdout", "stderr"))
        return Outcome(status.exit_code, stdout, stderr, status)

    async def make_image(
        self, name: str, entries: Sequence[layout.Entry] = (), config: Mapping[str, Any] | None = None
    ) -> str:
        """Push busybox with further entries in a second layer, pull it, and return its reference."""
        return await self.image_of(name, [base_entries(), list(entries)], config)

    async def image_of(
        self, name: str, layers: Sequence[Sequence[layout.Entry]], config: Mapping[str, Any] | None = None
    ) -> str:
        """Push an image of just these layers, pull it, and return its reference."""
        path = os.path.join(self._registry.directory, f"{name}-{next(_COUNT)}")
        base = {"Env": ["PATH=/bin:/usr/bin"], **(config or {})}
        layout.write(path, layout.ImagePlan(layers, base))
        reference = self._registry.push(path, f"{name}:{next(_COUNT)}")
        await self.cri.pull(reference)
        return reference
