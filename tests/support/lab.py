"""The real engine without a daemon: pods and containers from plans, for tests of the engine itself.

One `Lab` is one instance (spawner, directories, control groups) with one event loop, shared by the tests of a module.
A test is a coroutine decorated with `scenario`; each `Pod` that it makes is gone when its `async with` ends.
"""

import asyncio
import contextlib
import dataclasses
import functools
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from crishim import codec
from crishim.config.model import Config
from crishim.daemon.placement import unmount_namespaces
from crishim.daemon.planning import plan_settings
from crishim.engine.client import Engine, EngineSettings, Exit, Keeper, Started
from crishim.engine.plan.container import ContainerInput
from crishim.engine.plan.host import look
from crishim.engine.plan.planner import Planner
from crishim.engine.plan.rehearsal import plan_rehearsal
from crishim.engine.plan.types import ContainerPlan
from crishim.linux.cgroups import apply
from crishim.linux.facts import probe
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    ImageConfig,
    Metadata,
    NamespaceMode,
    NamespaceOptions,
    SandboxConfig,
)
from tests.fakes.daemon import Counting
from tests.support.abilities import need_containers
from tests.support.busybox import base_entries
from tests.support.ownership import SCOPE, run_id

IMAGE = ImageConfig(env=("PATH=/bin:/usr/bin", "IMAGE=yes"))
OWN_PID = NamespaceOptions(pid=NamespaceMode.CONTAINER)
DEADLINE = 60.0


def scenario(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine test on its lab's loop."""

    @functools.wraps(function)
    def run(lab: "Lab", **arguments: Any) -> None:
        lab.run(function(lab, **arguments))

    return run


@dataclasses.dataclass(slots=True)
class Container:
    """A container that was started."""

    id: str
    plan: ContainerPlan
    started: Started
    log: str

    def records(self) -> list[tuple[str, str, bytes]]:
        """Return the log's records as (stream, P or F, text)."""
        return records(self.log)

    def output(self, stream: str = "stdout") -> bytes:
        """Return what the container wrote to a stream, as its records say."""
        return joined(self.records(), stream)


def records(path: str) -> list[tuple[str, str, bytes]]:
    """Return the records of a log file as (stream, P or F, text); only a newline ends one."""
    found = []
    lines = Path(path).read_bytes().split(b"\n")
    assert lines.pop() == b"", "the file ends in the middle of a record"
    for line in lines:
        stamp, stream, tag, text = line.split(b" ", 3)
        assert stamp.endswith(b"Z"), line
        found.append((stream.decode(), tag.decode(), text))
    return found


def joined(found: Sequence[tuple[str, str, bytes]], stream: str = "stdout") -> bytes:
    """Return the bytes that a stream's records stand for."""
    return b"".join(text + (b"\n" if tag == "F" else b"") for name, tag, text in found if name == stream)


class Pod:
    """One pod with a live keeper."""

    def __init__(self, lab: "Lab", pod_id: str, config: SandboxConfig, keeper: Keeper) -> None:
        self.lab = lab
        self.id = pod_id
        self.config = config
        self.exits: dict[str, Exit] = {}
        self.containers: list[Container] = []
        self.lost = asyncio.Event()
        self._planned: list[str] = []
        self.keeper = keeper
        self.meet(keeper)

    def meet(self, keeper: Keeper) -> None:
        """Take a keeper as the pod's own, with what it tells at once."""
        self.keeper = keeper
        for entry in keeper.exits:
            self.exits[entry.container_id] = entry
        keeper.on_exit = self._on_exit
        keeper.on_lost = self.lost.set
        for fd in (keeper.files_fd, keeper.netns_fd, keeper.netlink_fd):
            if fd >= 0:
                os.close(fd)
        keeper.files_fd = keeper.netns_fd = keeper.netlink_fd = -1

    def _on_exit(self, entry: Exit) -> None:
        self.exits[entry.container_id] = entry

    def plan(
        self,
        *argv: str,
        image: ImageConfig = IMAGE,
        layers: Sequence[str] = (),
        upper: Callable[[str], None] | None = None,
        log: str | None = None,
        security: ContainerSecurity | None = None,
        **fields: Any,
    ) -> ContainerPlan:
        """Return the plan of a container in this pod.

        Args:
            argv: what it runs; one word alone is a shell script.
            image: the image's config.
            layers: directories above the base layer.
            upper: gets the read/write layer's path before the start, to put things there.
            log: path of the log file; None for one below the lab's directory, "" for none.
            security: the security context; None for an own PID namespace and nothing else.
            fields: of ContainerConfig.
        """
        command = ("/bin/sh", "-c", *argv) if len(argv) == 1 else argv
        container_id = secrets.token_hex(32)
        self._planned.append(container_id)
        directory = self.lab.paths.container(container_id)
        os.makedirs(f"{directory}/upper")
        os.makedirs(f"{directory}/work")
        if upper is not None:
            upper(f"{directory}/upper")
        config = ContainerConfig(
            ContainerMetadata("test"),
            command=command,
            log_path=f"{self.lab.directory}/logs/{container_id}.log" if log is None else log,
            security=security if security is not None else ContainerSecurity(namespaces=OWN_PID),
            **fields,
        )
        problems = Problems()
        host = look(problems, config)
        problems.check()
        plan = self.lab.planner.container(
            problems,
            ContainerInput(
                container_id,
                self.id,
                self.config,
                config,
                image,
                (self.lab.layer, *layers),
                f"{directory}/upper",
                f"{directory}/work",
                host=host,
            ),
        )
        problems.check()
        return plan

    async def run(self, *argv: str, **fields: Any) -> Container:
        """Start a container; see `plan`."""
        return await self.start(self.plan(*argv, **fields))

    async def start(self, plan: ContainerPlan) -> Container:
        """Start a planned container."""
        started = await self.keeper.start_container(codec.frozen(plan))
        container = Container(plan.container_id, plan, started, plan.stdio.log_path)
        self.containers.append(container)
        return container

    async def ended(self, container: Container) -> Exit:
        """Wait for a container's end."""
        async with asyncio.timeout(DEADLINE):
            while container.id not in self.exits:
                await asyncio.sleep(0.002)
        return self.exits[container.id]

    async def complete(self, *argv: str, **fields: Any) -> tuple[str, str, int]:
        """Run a container to its end; return stdout, stderr and the exit code."""
        container = await self.run(*argv, **fields)
        ended = await self.ended(container)
        return container.output().decode(), container.output("stderr").decode(), ended.exit_code

    async def exec(
        self, container: Container, *argv: str, timeout: float = DEADLINE, limit: int = 1 << 24, **process: Any
    ) -> tuple[bytes, bytes, int]:
        """Run a process in a container; one word alone is a shell script; `process` replaces fields of its plan."""
        command = ("/bin/sh", "-c", *argv) if len(argv) == 1 else argv
        plan = self.lab.planner.exec(container.plan, command)
        if process:
            plan = dataclasses.replace(plan, process=dataclasses.replace(plan.process, **process))
        return await self.keeper.exec_sync(container.id, plan, timeout, limit)

    async def logged(self, container: Container, text: bytes) -> None:
        """Wait until a container's log holds a text."""
        async with asyncio.timeout(DEADLINE):
            while text not in Path(container.log).read_bytes():
                await asyncio.sleep(0.002)

    @property
    def group(self) -> str:
        """Name of the pod's control group."""
        return self.lab.planner.pod_group(self.id, self.config)

    async def close(self) -> None:
        """Remove the pod and all that belonged to it."""
        await self.keeper.stop()
        await until(lambda: self.keeper.pidfd < 0)  # it has answered and ends by itself
        self.lab.engine.remove_pod(self.id, self.group)
        for name in self._planned:
            shutil.rmtree(self.lab.paths.container(name))


class Lab:
    """One instance of the engine."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._runner = asyncio.Runner()
        parent = f"/crishim-test-{run_id()}-{secrets.token_hex(3)}"
        self.config = dataclasses.replace(
            Config(), root=f"{directory}/root", state=f"{directory}/state", cgroup_parent=parent
        )
        self.paths = self.config.paths
        self.layer = f"{self.paths.layers}/base"
        for path in (self.paths.state, self.paths.containers, self.layer, f"{directory}/logs"):
            os.makedirs(path, 0o755)
        unpack(self.layer)
        self.facts = probe()
        assert self.facts.layout is not None
        self.layout = self.facts.layout
        self.planner = Planner(plan_settings(self.config, self.facts, Counting()))
        self.engine = self.new_engine()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the lab's loop."""
        self._runner.run(work)

    def new_engine(self) -> Engine:
        """Return another daemon's engine on the same instance, not started."""
        settings = EngineSettings(self.paths, self.layout, f"{self.config.cgroup_parent}/keepers")
        return Engine(settings)

    @contextlib.asynccontextmanager
    async def pod(self, **fields: Any) -> AsyncIterator[Pod]:
        """Make a pod; `fields` are SandboxConfig's."""
        config = SandboxConfig(Metadata("pod", "u", "ns"), **fields)
        pod_id = secrets.token_hex(32)
        plan = self.planner.pod(pod_id, config)
        keeper = await self.engine.start_pod(plan)
        for name, text in (("hosts", b"127.0.0.1 localhost\n"), ("hostname", b"pod\n"), ("resolv.conf", b"")):
            with open(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=keeper.files_fd), "wb") as file:
                file.write(text)
        pod = Pod(self, pod_id, config, keeper)
        try:
            yield pod
        finally:
            await pod.close()

    def start(self) -> None:
        """Start the engine."""
        self.run(self.engine.start())
        self.engine.warm_up(*plan_rehearsal(self.planner.settings))

    def close(self) -> None:
        """End the engine and remove the instance."""
        self.run(self.engine.close())
        self._runner.close()
        unmount_namespaces(self.paths)
        for group in (f"{self.config.cgroup_parent}/keepers", self.config.cgroup_parent):
            apply.remove((*self.layout.directories(group), *self.layout.watched(group)), patience=10.0)


def unpack(directory: str) -> None:
    """Write the test image's base system as a layer."""
    for entry in base_entries():
        path = f"{directory}/{entry.path}"
        if entry.kind == b"5":
            os.makedirs(path, exist_ok=True)
        elif entry.kind == b"2":
            os.symlink(entry.target, path)
        elif entry.kind == b"1":
            os.link(f"{directory}/{entry.target}", path)
        else:
            Path(path).write_bytes(entry.data)
        if entry.kind != b"2":
            os.chmod(path, entry.mode)
            os.chown(path, entry.uid, entry.gid)


def open_lab() -> Iterator[Lab]:
    """Body of a module's `lab` fixture."""
    need_containers()
    with tempfile.TemporaryDirectory(prefix="ctlab") as directory:
        os.chmod(directory, 0o755)
        SCOPE.directories.add(directory)
        made = Lab(directory)
        made.start()
        try:
            yield made
        finally:
            made.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the engine or the kernel does on its own."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.002)


def lives(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return b") Z" not in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False


def end(pid: int, signum: int = signal.SIGKILL) -> None:
    """Signal a process of the test's own, gone or not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
