"""Every move of a sandbox and a container over fakes: what happens, what is told, what is left."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from crishim.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
)
from crishim.pods import keepers, stopping
from crishim.pods.api import RuntimeApi
from crishim.pods.views import ContainerFilter, ContainerState, SandboxFilter, SandboxState
from crishim.request import (
    ContainerSecurity,
    ImageSpec,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Protocol,
    SandboxSecurity,
)
from tests.fakes.daemon import NOTHING, Daemon, app, pod, running
from tests.fakes.engine import Program
from tests.fakes.images import IMAGE

CREATED, RUNNING, EXITED = ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED


async def _started(daemon: Daemon, name: str = "web") -> tuple[str, str]:
    pod_id = await daemon.runtime.run_sandbox(pod(name, log_directory=f"{daemon.directory}/logs"), "")
    container_id = await daemon.runtime.create_container(pod_id, app(log_path="app/0.log"), None)
    await daemon.runtime.start_container(container_id)
    return pod_id, container_id


async def test_whole_life(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        events = runtime.events()
        request = pod(
            labels={"app": "web"},
            annotations={"a": "1"},
            attempt=2,
            port_mappings=(PortMapping(container_port=80, host_port=80),),
        )
        pod_id = await runtime.run_sandbox(request, "")
        view = runtime.sandbox(pod_id)
        assert (view.state, view.metadata.attempt, view.ips) == (SandboxState.READY, 2, ("10.0.0.3",))
        assert (view.labels, view.annotations) == ({"app": "web"}, {"a": "1"})
        assert [(p.protocol, p.host_port) for p in daemon.network.attached[pod_id].ports] == [(Protocol.TCP, 80)]
        assert Path(daemon.paths.pod(pod_id), "hosts").read_text().endswith(f"10.0.0.3\t{os.uname().nodename}\n")

        container_id = await runtime.create_container(pod_id, app(labels={"tier": "x"}), request.metadata)
        view2 = runtime.container(container_id)
        assert (view2.state, view2.image_id, view2.stop_signal) == (CREATED, IMAGE.id, "SIGQUIT")
        assert view2.config.labels == {"tier": "x"}  # never the image's
        assert daemon.images.holds == {container_id: IMAGE.id}
        assert os.path.isdir(f"{daemon.paths.container(container_id)}/upper")

        await runtime.start_container(container_id)
        view3 = runtime.container(container_id)
        assert view3.state is RUNNING
        assert view3.user is not None
        assert '"argv":["/bin/app"]' in Path(daemon.paths.container(container_id), "plan.json").read_text()
        assert view3.started_at >= view3.created_at > 0
        assert view3 is runtime.container(container_id)  # cached until something changes

        await runtime.stop_container(container_id, 5)
        assert daemon.process(pod_id).signals == [(container_id, 3)]
        view4 = runtime.container(container_id)
        assert (view4.state, view4.exit_code, view4.reason) == (EXITED, 131, "Error")
        assert view4.finished_at >= view4.started_at
        await asyncio.sleep(0)
        assert daemon.process(pod_id).journal == []  # acknowledged after the commit

        await runtime.remove_container(container_id)
        await runtime.stop_sandbox(pod_id)
        assert runtime.sandbox(pod_id).state is SandboxState.NOTREADY
        assert (daemon.network.attached, daemon.engine.kernel) == ({}, set())
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING
        heard = [await anext(events) for _ in range(8)]
        assert [(event.kind.name, event.id) for event in heard] == [
            ("CREATED", pod_id),
            ("STARTED", pod_id),
            ("CREATED", container_id),
            ("STARTED", container_id),
            ("STOPPED", container_id),
            ("DELETED", container_id),
            ("STOPPED", pod_id),
            ("DELETED", pod_id),
        ]
        states = [(event.sandbox.state.name, [inner.state.name for inner in event.containers]) for event in heard]
        assert states == [
            ("READY", []),
            ("READY", []),
            ("READY", ["CREATED"]),
            ("READY", ["RUNNING"]),
            ("READY", ["EXITED"]),
            ("READY", []),
            ("NOTREADY", []),
            ("NOTREADY", []),
        ]
        assert [event.at for event in heard] == sorted({event.at for event in heard})
        assert daemon.observer.phases == ["keeper", "network", "commit", "create", "start"]


async def test_runtime_answers_for_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        api: RuntimeApi = daemon.runtime  # the type checker compares the two
        assert [(c.kind, c.status) for c in await api.conditions()] == [("RuntimeReady", True), ("NetworkReady", True)]
        assert json.loads(api.verbose_status()["config"])["stateDir"] == daemon.config.state
        assert json.loads(api.verbose_status()["apparmor"])["runtimeDefault"] == "unconfined"
        assert api.cgroup_driver() == "cgroupfs"
        pod_id, container_id = await _started(daemon)
        info = json.loads((await api.container_info(container_id))["info"])
        assert (info["pid"], info["sandboxID"]) == (1000, pod_id)
        assert info["config"]["metadata"] == {"name": "app"}
        assert json.loads((await api.container_info(container_id))["plan"])["process"]["argv"] == ["/bin/app"]
        info = json.loads((await api.sandbox_info(pod_id))["info"])
        assert info["networkNamespace"] == daemon.paths.pinned_netns(pod_id)
        assert info["containers"] == [container_id]
        network = info["network"]
        assert (network["kind"], network["namespace"]) == ("embedded", daemon.paths.pinned_netns(pod_id))
        assert network["attachment"]["ips"] == ["10.0.0.3"]
        assert "No such file" in network["error"]  # the fake engine makes no namespaces


async def test_unknown_and_ambiguous_ids(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        await runtime.stop_sandbox("nope")
        await runtime.remove_sandbox("nope")
        await runtime.stop_container("nope", 0)
        await runtime.remove_container("nope")
        for ask in (runtime.sandbox, runtime.sandbox_stats):
            with pytest.raises(NotFoundError, match="sandbox 'nope' does not exist"):
                ask("nope")
        with pytest.raises(NotFoundError, match="sandbox 'nope' does not exist"):
            await runtime.sandbox_info("nope")
        with pytest.raises(NotFoundError, match="container 'nope' does not exist"):
            await runtime.container_info("nope")
        for ask2 in (runtime.container, runtime.container_stats):
            with pytest.raises(NotFoundError, match="container 'nope' does not exist"):
                ask2("nope")
        with pytest.raises(NotFoundError):
            await runtime.create_container("nope", app(), None)
        with pytest.raises(NotFoundError):
            await runtime.start_container("nope")
        with pytest.raises(InvalidArgumentError, match="sandbox_id: is empty"):
            runtime.sandbox("")
        ids = [await runtime.run_sandbox(pod(f"p{n}"), "") for n in range(17)]  # two share a first digit
        first = next(i[0] for n, i in enumerate(ids) if i[0] in {j[0] for j in ids[:n]})
        with pytest.raises(InvalidArgumentError, match="is ambiguous"):
            runtime.sandbox(first)
        assert runtime.sandbox(ids[3][:20]).id == ids[3]
        await runtime.stop_sandbox(ids[3][:20])
        assert runtime.sandbox(ids[3]).state is SandboxState.NOTREADY


async def test_filters(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        one = await runtime.run_sandbox(pod("one", labels={"a": "1", "b": "2"}), "")
        two = await runtime.run_sandbox(pod("two", labels={"a": "1"}), "")
        await runtime.stop_sandbox(two)

        def pods(**fields: object) -> list[str]:
            return [view.id for view in runtime.sandboxes(SandboxFilter(**fields))]  # type: ignore[arg-type]

        assert pods() == [two, one]
        assert pods(labels={"a": "1"}) == [two, one]
        assert pods(labels={"a": "1", "b": "2"}) == [one]
        assert pods(state=SandboxState.READY) == [one]
        assert pods(id=one[:12]) == [one]
        assert pods(id=one, state=SandboxState.NOTREADY) == []

        x = await runtime.create_container(one, app("x", labels={"k": "v"}), None)
        y = await runtime.create_container(one, app("y"), None)
        await runtime.start_container(y)

        def inside(**fields: object) -> list[str]:
            return [view.id for view in runtime.containers(ContainerFilter(**fields))]  # type: ignore[arg-type]

        assert inside() == [y, x]
        assert inside(state=RUNNING) == [y]
        assert inside(labels={"k": "v"}) == [x]
        assert inside(sandbox_id=one[:10]) == [y, x]
        assert inside(sandbox_id=two) == []
        assert inside(id=x[:12]) == [x]
        assert runtime.pods_by_state() == {("READY",): 1, ("NOTREADY",): 1}
        assert runtime.containers_by_state() == {
            ("CREATED",): 1,
            ("RUNNING",): 1,
            ("EXITED",): 0,
            ("UNKNOWN",): 0,
        }
        assert runtime.keepers() == {(): 1}


async def test_names_are_reserved(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        with pytest.raises(AlreadyExistsError, match=pod_id):
            await runtime.run_sandbox(pod(), "")
        again = await runtime.run_sandbox(pod(attempt=1), "")
        assert again != pod_id
        container_id = await runtime.create_container(pod_id, app(), None)
        with pytest.raises(AlreadyExistsError, match=container_id):
            await runtime.create_container(pod_id, app(), None)
        await runtime.create_container(again, app(), None)
        await runtime.remove_container(container_id)
        await runtime.create_container(pod_id, app(), None)


async def test_start_and_stop_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id, container_id = await _started(daemon)
        with pytest.raises(FailedPreconditionError, match="is RUNNING; only a CREATED one"):
            await runtime.start_container(container_id)
        await runtime.stop_container(container_id, 1)
        await runtime.stop_container(container_id, 1)
        with pytest.raises(FailedPreconditionError, match="is EXITED"):
            await runtime.start_container(container_id)
        with pytest.raises(FailedPreconditionError, match="EXITED, not RUNNING"):
            await runtime.exec_sync(container_id, ["true"], 0)
        with pytest.raises(FailedPreconditionError, match="only a running one writes a log"):
            await runtime.reopen_log(container_id)
        await runtime.stop_sandbox(pod_id)
        await runtime.stop_sandbox(pod_id)
        with pytest.raises(FailedPreconditionError, match="is not ready"):
            await runtime.create_container(pod_id, app("late"), None)
        await runtime.remove_sandbox(pod_id)
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_remove_sandbox_takes_running_containers_along(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, _ = await _started(daemon)
        for n in range(3):
            container_id = await daemon.runtime.create_container(pod_id, app(f"more{n}"), None)
            if n:
                await daemon.runtime.start_container(container_id)
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_remove_kills_a_running_container(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _started(daemon)
        await daemon.runtime.remove_container(container_id)
        assert daemon.runtime.containers(ContainerFilter()) == []
        assert daemon.process(pod_id).running == {}
        assert daemon.images.holds == {}


async def test_host_network_pod_has_no_attachment(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        security = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE))
        pod_id = await daemon.runtime.run_sandbox(pod(security=security), "")
        assert daemon.runtime.sandbox(pod_id).ips == ()
        assert daemon.network.attached == {}
        assert Path(daemon.paths.pod(pod_id), "hosts").read_text() == Path("/etc/hosts").read_text()
        await daemon.runtime.remove_sandbox(pod_id)
        assert "network.detach" not in daemon.faults.reached
        assert daemon.left() == NOTHING


@pytest.mark.parametrize(
    ("exit_code", "oom", "reason"),
    [
        (0, False, "Completed"),
        (7, False, "Error"),
        (137, True, "OOMKilled"),
        (137, False, "Error"),
        (0, True, "Completed"),
        (143, True, "Error"),
    ],
)
async def test_exit_reasons(tmp_path: Path, exit_code: int, oom: bool, reason: str) -> None:
    async with running(tmp_path) as daemon:
        pod_id, container_id = await _started(daemon)
        process = daemon.process(pod_id)
        process.end(container_id, exit_code, oom_killed=oom)
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, exit_code, reason)
        finished = view.finished_at
        entry = process.journal[0]
        process.tell(entry)  # an entry seen twice changes nothing
        assert daemon.runtime.container(container_id).finished_at == finished


async def test_container_that_ends_before_its_start_is_committed(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        daemon.engine.program = Program(ends_with=5)
        pod_id, container_id = await _started(daemon)
        view = daemon.runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 5, "Error")
        assert view.finished_at >= view.started_at > 0
        await asyncio.sleep(0)
        assert daemon.process(pod_id).journal == []


async def test_failed_start(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id = await runtime.run_sandbox(pod(), "")
        container_id = await runtime.create_container(pod_id, app(), None)
        daemon.faults.fail("keeper.start_container", InternalError("exec /bin/nope: no such file or directory"))
        with pytest.raises(InternalError, match="exec /bin/nope"):
            await runtime.start_container(container_id)
        view = runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 128, "StartError")
        assert view.message == "exec /bin/nope: no such file or directory"
        assert view.finished_at >= view.started_at > 0
        await runtime.remove_container(container_id)
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_stop_kills_what_does_not_mind_the_signal(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        daemon.engine.program = Program(minds_term=False)
        _, container_id = await _started(daemon)
        slow = asyncio.create_task(daemon.runtime.stop_container(container_id, 3600))
        await asyncio.sleep(0.01)
        assert daemon.runtime.container(container_id).state is RUNNING
        await daemon.runtime.stop_container(container_id, 0)  # shortens the grace of both
        await slow
        assert daemon.runtime.container(container_id).exit_code == 137
        assert daemon.faults.reached.count("keeper.signal") == 1
        assert daemon.faults.reached.count("keeper.kill") == 1


async def test_unkillable_container_stays_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "KILL_WAIT", 0.01)
    async with running(tmp_path) as daemon:
        daemon.engine.program = Program(minds_term=False, minds_kill=False)
        pod_id, container_id = await _started(daemon)
        runtime = daemon.runtime
        for call in (
            runtime.stop_container(container_id, 0),
            runtime.remove_container(container_id),
            runtime.stop_sandbox(pod_id),
            runtime.remove_sandbox(pod_id),
        ):
            with pytest.raises(DeadlineExceededError, match="did not end within"):
                await call
        assert runtime.container(container_id).state is RUNNING
        assert runtime.sandbox(pod_id).state is SandboxState.READY
        other = await runtime.create_container(pod_id, app("other"), None)  # the pod goes on
        daemon.process(pod_id).programs[container_id].minds_kill = True
        await runtime.stop_container(container_id, 0)
        assert runtime.container(container_id).exit_code == 137
        await runtime.remove_container(other)
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_stop_of_a_cancelled_caller_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        daemon.engine.program = Program(minds_term=False)
        _, container_id = await _started(daemon)
        caller = asyncio.create_task(daemon.runtime.stop_container(container_id, 1))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await daemon.runtime.stop_container(container_id, 0)
        assert daemon.runtime.container(container_id).state is EXITED


async def test_failed_detach_keeps_the_sandbox(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id, container_id = await _started(daemon)
        for call in (runtime.stop_sandbox, runtime.remove_sandbox):
            daemon.faults.fail("network.detach")
            with pytest.raises(InternalError, match=r"network\.detach"):
                await call(pod_id)
            assert runtime.sandbox(pod_id).state is SandboxState.NOTREADY
            assert runtime.container(container_id).state is EXITED
            assert daemon.network.attached.keys() == {pod_id}
        await daemon.restart()
        daemon.faults.fail("network.detach")
        with pytest.raises(InternalError):
            await daemon.runtime.remove_sandbox(pod_id)
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_group_that_cannot_be_removed_keeps_the_sandbox(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id, _ = await _started(daemon)
        daemon.faults.fail("engine.remove_pod", OSError(16, "rmdir control group: 1 processes are left in it", "/g"))
        with pytest.raises(InternalError, match="1 processes are left in it /g"):
            await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.runtime.sandbox(pod_id).state is SandboxState.NOTREADY
        await daemon.runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_lost_keeper(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id, container_id = await _started(daemon)
        ended = await runtime.create_container(pod_id, app("ended"), None)
        await runtime.start_container(ended)
        process = daemon.process(pod_id)
        client, process.client = process.client, None
        process.end(ended, 9)  # journalled, but the message is lost with the keeper
        process.client = client
        process.die()
        while runtime.sandbox(pod_id).state is SandboxState.READY:
            await asyncio.sleep(0.001)
        view = runtime.container(container_id)
        assert (view.state, view.exit_code, view.reason) == (EXITED, 255, "KeeperLost")
        assert (runtime.container(ended).exit_code, runtime.container(ended).reason) == (9, "Error")
        with pytest.raises(FailedPreconditionError):
            await runtime.create_container(pod_id, app("late"), None)
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_lost_keeper_whose_container_cannot_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(directories: tuple[str, ...], version: int) -> bool:
        raise OSError(16, "rmdir control group: 1 processes are left in it", directories[0])

    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id, container_id = await _started(daemon)
        with monkeypatch.context() as patch:
            patch.setattr(keepers, "kill_group", stuck)
            daemon.process(pod_id).die()
            while runtime.sandbox(pod_id).state is SandboxState.READY:
                await asyncio.sleep(0.001)
            assert runtime.container(container_id).state is ContainerState.UNKNOWN
            for call in (runtime.stop_container(container_id, 1), runtime.remove_container(container_id)):
                with pytest.raises(DeadlineExceededError, match="cannot be killed"):
                    await call
        await runtime.stop_container(container_id, 1)
        assert runtime.container(container_id).reason == "KeeperLost"
        await runtime.remove_sandbox(pod_id)
        assert daemon.left() == NOTHING


async def test_exec_update_and_log(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        pod_id, container_id = await _started(daemon)
        result = await runtime.exec_sync(container_id, ["echo", "x"], 7)
        assert (result.stdout, result.stderr, result.exit_code) == (b"echo x", b"7", 3)
        with pytest.raises(InvalidArgumentError, match="cmd: is missing"):
            await runtime.exec_sync(container_id, [], 0)
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await runtime.exec_sync(container_id, ["a"], -1)
        await runtime.reopen_log(container_id)
        assert daemon.process(pod_id).reopened == [container_id]
        assert os.path.isdir(f"{daemon.directory}/logs/app")


async def test_missing_image_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        pod_id = await daemon.runtime.run_sandbox(pod(), "")
        with pytest.raises(NotFoundError, match=r"image 'nope' does not exist here: pull it first"):
            await daemon.runtime.create_container(pod_id, app(image=ImageSpec("nope")), None)
        assert daemon.left()["layers"] == []


async def test_refused_requests(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        runtime = daemon.runtime
        with pytest.raises(InvalidArgumentError, match="runtime_handler: 'kata' is not configured") as caught:
            await runtime.run_sandbox(pod(hostname="-"), "kata")
        assert "config.hostname" in str(caught.value)
        pod_id = await runtime.run_sandbox(pod(log_directory=str(tmp_path)), "")
        with pytest.raises(InvalidArgumentError, match="needs a privileged sandbox"):
            await runtime.create_container(pod_id, app(security=ContainerSecurity(privileged=True)), None)
        with pytest.raises(InvalidArgumentError, match="log_path"):
            await runtime.create_container(pod_id, app(log_path="../../x"), None)
        with pytest.raises(InvalidArgumentError, match="stop_signal"):
            await runtime.create_container(pod_id, app(stop_signal="SIGNOPE"), None)
        with pytest.raises(FailedPreconditionError, match="sandbox_config"):
            await runtime.create_container(pod_id, app(), pod("other").metadata)
        assert daemon.left()["containers"] == []
