"""The runtime over the real engine, network, store and kernel; only the image store is a fake with a real layer.

One process plays daemon after daemon: `restart` lets go of the keepers as the end of a daemon does, and a new
runtime takes them over.
"""

import asyncio
import dataclasses
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crishim.config.model import Config
from crishim.daemon.placement import unmount_namespaces
from crishim.daemon.planning import plan_settings
from crishim.engine import keeper_client, wire
from crishim.engine.client import Engine, EngineSettings
from crishim.engine.plan.planner import Planner
from crishim.engine.plan.rehearsal import plan_rehearsal
from crishim.errors import CrishimError, FailedPreconditionError
from crishim.images.model import Image
from crishim.linux.cgroups import apply
from crishim.linux.facts import probe
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.settings import NetworkSettings
from crishim.pods.runtime import Runtime
from crishim.pods.views import ContainerFilter, ContainerState, ContainerView, SandboxFilter, SandboxState
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    ImageConfig,
    ImageSpec,
    Metadata,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Resources,
    SandboxConfig,
)
from crishim.store.store import Store
from tests.fakes.daemon import Counting
from tests.fakes.faults import Faults
from tests.fakes.images import FakeImages
from tests.support.abilities import need_containers
from tests.support.busybox import find_busybox

RUNNING, EXITED = ContainerState.RUNNING, ContainerState.EXITED
IMAGE = "local/busybox:1"
_SECURITY = ContainerSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER))


class Images(FakeImages):
    """The fake, with busybox in one unpacked layer."""

    def __init__(self, layer: str) -> None:
        super().__init__(Faults())
        image = Image("sha256:" + "b" * 64, (), ImageConfig(env=("PATH=/bin",)), 1, repo_tags=(IMAGE,))
        self.images = {image.id: image}
        self._layer = layer

    def hold(self, image_id: str, owner: str) -> tuple[str, ...]:
        super().hold(image_id, owner)
        return (self._layer,)


class Machine:
    """One instance of everything but the server."""

    def __init__(self, directory: str) -> None:
        word = secrets.token_hex(3)
        subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(255)}.0/24"
        self.directory = directory
        self.config = dataclasses.replace(
            Config(), root=f"{directory}/root", state=f"{directory}/state", cgroup_parent=f"/crishim-test-{word}"
        )
        self.paths = self.config.paths
        layer = f"{self.paths.layers}/1"
        for path in (self.paths.state, f"{layer}/bin", f"{layer}/tmp"):
            os.makedirs(path, 0o755, exist_ok=True)
        shutil.copy(find_busybox(), f"{layer}/bin/busybox")
        for name in ("sh", "sleep", "cat", "echo", "true", "kill", "id", "dd", "hostname", "ps"):
            os.link(f"{layer}/bin/busybox", f"{layer}/bin/{name}")
        self.images = Images(layer)
        self.network_settings = NetworkSettings(bridge=f"ct{word}", subnets=(subnet,))
        self.facts = probe()
        assert self.facts.layout is not None
        self.layout = self.facts.layout
        self.greeting_deadline = 30.0
        self.keepers_group = f"{self.config.cgroup_parent}/keepers"

    async def start(self) -> Runtime:
        self.observer = Counting()
        self.store = Store.open(self.paths.database)
        self.engine = Engine(EngineSettings(self.paths, self.layout, self.keepers_group, self.greeting_deadline))
        await self.engine.start()
        self.network = EmbeddedNetwork(self.network_settings, self.store.leases)
        await self.network.start()
        planner = Planner(plan_settings(self.config, self.facts, self.observer))
        self.engine.warm_up(*plan_rehearsal(planner.settings))
        self.runtime = Runtime(
            self.config, self.store, self.engine, self.images, self.network, planner, self.observer, host=self.facts
        )
        await self.runtime.start()
        return self.runtime

    async def stop(self, *, remove: bool = False) -> None:
        await self.runtime.close()
        await self.network.shutdown(remove=remove)
        await self.engine.close()
        self.store.close()

    async def restart(self) -> Runtime:
        await self.stop()
        return await self.start()

    async def close(self) -> None:
        for view in self.runtime.sandboxes(SandboxFilter()):
            await self.runtime.remove_sandbox(view.id)
        await self.stop(remove=True)
        unmount_namespaces(self.paths)
        group = self.config.cgroup_parent
        apply.remove((*self.layout.directories(group), *self.layout.watched(group)), patience=5.0)

    # --- what tests do ------------------------------------------------------------------------

    async def pod(self, name: str = "web", **fields: object) -> str:
        config = SandboxConfig(Metadata(name, "u", "ns"), log_directory=f"{self.directory}/logs", **fields)  # type: ignore[arg-type]
        return await self.runtime.run_sandbox(config, "")

    async def create(self, pod_id: str, script: str, name: str = "app", **fields: object) -> str:
        fields.setdefault("security", _SECURITY)
        config = ContainerConfig(
            ContainerMetadata(name),
            ImageSpec(IMAGE),
            command=("/bin/sh", "-c", script),
            log_path=f"{name}/0.log",
            **fields,  # type: ignore[arg-type]
        )
        return await self.runtime.create_container(pod_id, config, None)

    async def run(self, pod_id: str, script: str, name: str = "app", **fields: object) -> str:
        container_id = await self.create(pod_id, script, name, **fields)
        await self.runtime.start_container(container_id)
        return container_id

    async def ended(self, container_id: str) -> ContainerView:
        return await self.until(container_id, lambda view: view.state is EXITED)

    async def until(self, container_id: str, condition: Callable[[ContainerView], bool]) -> ContainerView:
        async with asyncio.timeout(20):
            while not condition(view := self.runtime.container(container_id)):
                await asyncio.sleep(0.005)
        return view

    def log(self, name: str = "app") -> list[str]:
        text = Path(self.directory, "logs", name, "0.log").read_text()
        return [line.split(" ", 3)[3] for line in text.splitlines()]


@asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    need_containers()
    with tempfile.TemporaryDirectory(prefix="ctpods") as directory:
        os.chmod(directory, 0o755)
        made = Machine(directory)
        await made.start()
        try:
            yield made
        finally:
            await made.close()


async def test_whole_life() -> None:
    async with machine() as m:
        pod_id = await m.pod(hostname="here")
        view = m.runtime.sandbox(pod_id)
        assert view.state is SandboxState.READY
        assert len(view.ips) == 1
        container_id = await m.run(pod_id, "hostname; cat /etc/hosts; exec sleep 600")
        running = m.runtime.container(container_id)
        assert running.state is RUNNING
        assert os.path.exists(running.log_path)
        assert running.user is not None
        assert running.user.uid == 0
        result = await m.runtime.exec_sync(container_id, ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], 10)
        assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
        await m.runtime.stop_container(container_id, 0)
        ended = m.runtime.container(container_id)
        assert (ended.state, ended.exit_code, ended.reason) == (EXITED, 137, "Error")
        assert m.log()[0] == "here"
        assert f"{view.ips[0]}\there" in m.log()
        await m.runtime.remove_sandbox(pod_id)
        assert m.runtime.containers(ContainerFilter()) == []
        assert os.listdir(m.paths.pods) == []
        assert os.listdir(m.paths.namespaces) == []
        assert not any(os.path.exists(d) for d in m.layout.directories(f"{m.config.cgroup_parent}/{pod_id}"))


async def test_ends_of_containers() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        codes = {"zero": "true", "seven": "exit 7", "killed": "exec sleep 600"}
        ids = {name: await m.run(pod_id, script, name) for name, script in codes.items()}
        os.kill(_pid(m, ids["killed"]), signal.SIGKILL)
        limit = Resources(memory_limit_in_bytes=16 << 20)
        ids["eater"] = await m.run(pod_id, "exec dd if=/dev/zero of=/dev/null bs=200M", "eater", resources=limit)
        views = {name: await m.ended(container_id) for name, container_id in ids.items()}
        assert {name: (view.exit_code, view.reason) for name, view in views.items()} == {
            "zero": (0, "Completed"),
            "seven": (7, "Error"),
            "killed": (137, "Error"),
            "eater": (137, "OOMKilled"),
        }
        assert all(v.finished_at >= v.started_at >= v.created_at > 0 for v in views.values())


async def test_start_failures_are_exact() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        config = ContainerConfig(ContainerMetadata("bad"), ImageSpec(IMAGE), command=("/bin/nope",), security=_SECURITY)
        container_id = await m.runtime.create_container(pod_id, config, None)
        with pytest.raises(FailedPreconditionError, match=r"/bin/nope"):
            await m.runtime.start_container(container_id)
        view = m.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 128, "StartError")
        assert "/bin/nope" in view.message
        assert view.finished_at >= view.started_at > 0
        await m.runtime.remove_container(container_id)


async def test_stopped_and_trapping_containers_end() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        stopped = await m.run(pod_id, "exec sleep 600", "stopped")
        trapping = await m.run(pod_id, "trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.05; done", "trap")
        os.kill(_pid(m, stopped), signal.SIGSTOP)
        async with asyncio.timeout(20):
            while not (os.path.exists(m.runtime.container(trapping).log_path) and m.log("trap")):
                await asyncio.sleep(0.01)
        await asyncio.gather(m.runtime.stop_container(stopped, 1), m.runtime.stop_container(trapping, 10))
        assert m.runtime.container(stopped).exit_code == 137
        assert m.runtime.container(trapping).exit_code == 5
        assert m.log("trap") == ["up", "term"]


def _pid(m: Machine, container_id: str) -> int:
    return m.runtime._context.registry.containers.get(container_id).status.pid


async def test_restart_adopts_and_learns() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        stays = await m.run(pod_id, "exec sleep 600", "stays")
        ends = await m.run(pod_id, "sleep 0.3; exit 7", "ends")
        later = await m.create(pod_id, "exit 4", "later")
        await m.stop()
        await asyncio.sleep(0.6)
        await m.start()
        assert m.runtime.sandbox(pod_id).state is SandboxState.READY
        assert m.runtime.container(stays).state is RUNNING
        view = m.runtime.container(ends)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 7, "Error")
        assert m.observer.leaks == {}
        await m.runtime.start_container(later)
        assert (await m.ended(later)).exit_code == 4
        assert (await m.runtime.exec_sync(stays, ["/bin/true"], 10)).exit_code == 0
        await m.runtime.remove_sandbox(pod_id)


async def test_killed_keeper_takes_its_containers_along() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        container_id = await m.run(pod_id, "exec sleep 600")
        pid = _pid(m, container_id)
        keeper = m.runtime._context.registry.sandbox(pod_id).keeper
        assert keeper is not None
        os.kill(keeper.pid, signal.SIGKILL)
        view = await m.ended(container_id)
        assert (view.exit_code, view.reason) == (137, "KeeperLost")
        async with asyncio.timeout(10):
            while m.runtime.sandbox(pod_id).state is SandboxState.READY or _lives(pid):
                await asyncio.sleep(0.01)
        await m.runtime.remove_sandbox(pod_id)
        assert os.listdir(m.paths.pods) == []


async def test_keeper_that_does_not_answer_is_given_up() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        pid = _pid(m, await m.run(pod_id, "exec sleep 600"))
        keeper = m.runtime._context.registry.sandbox(pod_id).keeper
        assert keeper is not None
        keeper_pid = keeper.pid
        await m.stop()
        os.kill(keeper_pid, signal.SIGSTOP)
        m.greeting_deadline = 0.5
        await m.start()
        assert m.runtime.sandbox(pod_id).state is SandboxState.NOTREADY
        assert [view.reason for view in m.runtime.containers(ContainerFilter())] == ["KeeperLost"]
        async with asyncio.timeout(10):
            while _lives(pid) or _lives(keeper_pid):
                await asyncio.sleep(0.01)
        await m.runtime.remove_sandbox(pod_id)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return b") Z" not in file.read()
    except FileNotFoundError:
        return False


async def test_a_hung_keeper_without_a_record_is_ended_with_its_containers() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        pid = _pid(m, await m.run(pod_id, "exec sleep 600"))
        keeper = m.runtime._context.registry.sandbox(pod_id).keeper
        assert keeper is not None
        keeper_pid = keeper.pid
        await m.stop()
        store = Store.open(m.paths.database)
        for row in store.containers.load():
            store.containers.delete(row.id)
        store.sandboxes.delete(pod_id)
        store.close()
        os.kill(keeper_pid, signal.SIGSTOP)
        m.greeting_deadline = 0.5
        await m.start()
        assert not _lives(keeper_pid)
        assert not _lives(pid)
        assert os.listdir(m.paths.pods) == []
        assert os.listdir(m.paths.namespaces) == []


async def test_nobody_but_the_pods_keeper_is_taken_for_it(tmp_path: Path) -> None:
    listener = wire.listen(str(tmp_path), "keeper.sock")
    sock = wire.connect(str(tmp_path), "keeper.sock")
    before = len(os.listdir("/proc/self/fd"))
    assert keeper_client.pidfd_of_peer(sock, "0" * 64) == -1  # it is this process that listens
    assert len(os.listdir("/proc/self/fd")) == before
    await keeper_client.end_silent(-1, "0" * 64, "nothing")
    sock.close()
    listener.close()


async def test_pods_without_a_record_are_removed() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        pid = _pid(m, await m.run(pod_id, "exec sleep 600"))
        await m.stop()
        store = Store.open(m.paths.database)
        for row in store.containers.load():
            store.containers.delete(row.id)
        store.sandboxes.delete(pod_id)
        store.close()
        await m.start()
        assert m.runtime.sandboxes(SandboxFilter()) == []
        assert not _lives(pid)
        assert m.observer.leaks["keeper"] == 1
        assert m.observer.leaks["container_dir"] == 1
        assert os.listdir(m.paths.pods) == []


async def test_update_and_stats() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        hog = "x=$(dd if=/dev/zero bs=1M count=24 2>/dev/null | tr '\\0' y); echo ready; while :; do :; done"
        before = Resources(memory_limit_in_bytes=128 << 20, cpu_shares=512)
        container_id = await m.run(pod_id, hog.replace("| tr", "| /bin/busybox tr"), resources=before)
        async with asyncio.timeout(30):
            while not m.log():
                await asyncio.sleep(0.02)
        with pytest.raises(FailedPreconditionError, match="memory_limit_in_bytes"):
            await m.runtime.update_container(container_id, Resources(memory_limit_in_bytes=4 << 20), {})
        assert m.runtime.container(container_id).resources == before
        await m.runtime.update_container(container_id, Resources(memory_limit_in_bytes=256 << 20), {})
        expected = dataclasses.replace(before, memory_limit_in_bytes=256 << 20)
        assert m.runtime.container(container_id).resources == expected
        (first,) = m.runtime.list_sandbox_stats(SandboxFilter())
        await asyncio.sleep(0.6)
        (stats,) = m.runtime.list_sandbox_stats(SandboxFilter())
        (inside,) = stats.containers
        assert first.cpu is not None
        assert first.cpu.usage_nano_cores is None
        assert inside.cpu is not None
        assert inside.cpu.usage_nano_cores is not None
        assert inside.cpu.usage_nano_cores > 0
        assert inside.memory is not None
        assert 20 << 20 < inside.memory.working_set_bytes < 256 << 20
        assert inside.memory.available_bytes == (256 << 20) - inside.memory.working_set_bytes
        assert inside.writable_layer is not None
        assert inside.writable_layer.inodes_used >= 1
        assert stats.process_count is not None
        assert stats.process_count >= 1
        assert [interface.name for interface in stats.interfaces] == ["eth0"]
        await m.runtime.stop_container(container_id, 0)
        assert m.runtime.container_stats(container_id).cpu is None


async def test_mounts_and_log_rotation() -> None:
    async with machine() as m:
        pod_id = await m.pod()
        os.makedirs(f"{m.directory}/real")
        os.symlink("real", f"{m.directory}/link")
        mounts = (Mount("/in", f"{m.directory}/link"), Mount("/made", f"{m.directory}/made", readonly=True))
        script = "echo hello > /in/file; echo no > /made/file; while :; do echo line; sleep 0.05; done"
        container_id = await m.run(pod_id, script, mounts=mounts)
        view = m.runtime.container(container_id)
        assert view.config.mounts == mounts
        async with asyncio.timeout(20):
            while "line" not in m.log():
                await asyncio.sleep(0.01)
        assert Path(m.directory, "real/file").read_text() == "hello\n"
        assert os.listdir(f"{m.directory}/made") == []
        os.rename(view.log_path, f"{view.log_path}.1")
        await m.runtime.reopen_log(container_id)
        assert os.path.exists(view.log_path)
        await m.runtime.stop_container(container_id, 0)


async def test_many_pods_at_once_leave_nothing() -> None:
    async with machine() as m:

        async def life(n: int) -> None:
            pod_id = await m.pod(f"pod{n}")
            await m.run(pod_id, "exec sleep 600")
            await m.runtime.remove_sandbox(pod_id)

        await asyncio.gather(*(life(n) for n in range(12)))
        assert m.runtime.sandboxes(SandboxFilter()) == []
        assert os.listdir(m.paths.pods) == []
        assert m.images.holds == {}


async def test_network_conflict_leaves_nothing() -> None:
    async with machine() as m:
        port = (PortMapping(container_port=80, host_port=31999),)
        first = await m.pod("first", port_mappings=port)
        with pytest.raises(CrishimError, match="31999"):
            await m.pod("second", port_mappings=port)
        assert [view.id for view in m.runtime.sandboxes(SandboxFilter())] == [first]
        assert os.listdir(m.paths.pods) == [first]
