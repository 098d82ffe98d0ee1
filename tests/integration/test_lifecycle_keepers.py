"""A keeper that is silent (stopped by SIGSTOP) or dead holds up neither the daemon nor the end of its pod."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim.linux.cgroups import apply
from crishim.linux.facts import probe
from tests.support.cri import attempt, refused
from tests.support.world import Pod, World

STAY = "trap '' TERM; while :; do sleep 600; done"


def keeper_of(pod: str) -> int:
    """Return the pid of a pod's keeper."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().rstrip(b"\0").rstrip()
            if entry.name.isdigit() and title == f"crishim-keeper {pod}".encode():
                return int(entry.name)
    raise AssertionError(f"pod {pod} has no keeper")


class Silenced:
    """Keepers that were stopped; those that are there still go on at the end."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, pod: Pod) -> int:
        """Stop a pod's keeper; return its pid."""
        pid = keeper_of(pod.id)
        self._fds.append(os.pidfd_open(pid))
        signal.pidfd_send_signal(self._fds[-1], signal.SIGSTOP)
        return pid

    def go_on(self) -> None:
        """Let all go on."""
        for fd in self._fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            os.close(fd)
        self._fds.clear()


@pytest.fixture
def silenced() -> Iterator[Silenced]:
    made = Silenced()
    yield made
    made.go_on()


def processes(group: str) -> list[int]:
    """Return the processes in a control group and below."""
    return [pid for directory in probe().layout.directories(group) for pid in apply.pids([directory])]  # type: ignore[union-attr]


async def stop_pod(world: World, pod: Pod) -> None:
    await world.cri.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod.id))


async def is_ready(world: World, pod: Pod) -> bool:
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    return bool(reply.status.state == api.SANDBOX_READY)


async def test_a_pod_whose_keeper_is_silent_is_stopped_and_removed(own_world: World, silenced: Silenced) -> None:
    world = own_world
    pod = await world.pod()
    containers = [await world.run(pod, STAY) for _ in range(2)]
    group = f"{world.instance.cgroup_parent}/{pod.id}"
    assert processes(group)
    silenced.add(pod)
    await stop_pod(world, pod)
    assert not await is_ready(world, pod)
    for container in containers:
        assert (await world.cri.status(container)).state == api.CONTAINER_EXITED
    assert not processes(group)
    await world.cri.remove_pod(pod.id)
    assert (await world.once("echo next")).stdout == "next\n"


async def test_a_pod_without_containers_whose_keeper_is_silent_is_removed(own_world: World, silenced: Silenced) -> None:
    pod = await own_world.pod()
    silenced.add(pod)
    await own_world.cri.remove_pod(pod.id)


async def test_a_container_whose_keeper_is_silent_is_stopped(own_world: World, silenced: Silenced) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.run(pod, STAY)
    silenced.add(pod)
    await world.cri.stop(container)
    assert (await world.cri.status(container)).state == api.CONTAINER_EXITED
    assert not await is_ready(world, pod)


async def test_a_start_that_a_silent_keeper_holds_does_not_hold_the_end(own_world: World, silenced: Silenced) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.cri.create(pod.id, world.config(STAY), pod.config)
    silenced.add(pod)
    starting = asyncio.create_task(attempt(world.cri.start(container)))
    await asyncio.sleep(0.2)
    await world.cri.remove_pod(pod.id)
    _, error = await starting
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_exec_at_a_silent_keeper_ends_with_its_own_timeout(own_world: World, silenced: Silenced) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.run(pod, STAY)
    silenced.add(pod)
    request = api.ExecSyncRequest(container_id=container, cmd=["true"], timeout=1)
    # the client's own deadline has another sentence; a call of the keeper's may take 30 s
    details = await refused(world.cri.runtime.ExecSync(request, timeout=20), grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "did not end within 1 s" in details
    silenced.go_on()
    assert await world.cri.output(container, "echo", "again") == "again\n"


async def test_a_start_of_the_daemon_does_not_wait_for_a_silent_keeper(own_world: World, silenced: Silenced) -> None:
    world = own_world
    silent, other = await world.pod(), await world.pod()
    container = await world.run(silent, STAY)
    fine = await world.run(other, STAY)
    world.instance.kill()
    silenced.add(silent)
    world.instance.start()  # fails after 20 s; a keeper is waited for 30
    await world.reconnect()
    assert await world.cri.output(fine, "echo", "fine") == "fine\n"
    assert (await world.cri.status(container)).state == api.CONTAINER_RUNNING
    assert await is_ready(world, silent)
    details = await refused(world.cri.exec(container, "true"), grpc.StatusCode.UNAVAILABLE)
    assert "has not answered yet" in details
    silenced.go_on()
    assert await world.cri.output(container, "echo", "again") == "again\n"
    late = await world.run(silent, STAY)
    assert await world.cri.output(late, "echo", "late") == "late\n"


async def test_a_pod_whose_keeper_never_answered_this_daemon_is_removed(own_world: World, silenced: Silenced) -> None:
    world = own_world
    pods = [await world.pod() for _ in range(2)]
    for pod in pods:
        await world.run(pod, STAY)
    world.instance.kill()
    for pod in pods:
        silenced.add(pod)
    world.instance.start()
    await world.reconnect()
    await asyncio.gather(*(world.cri.remove_pod(pod.id) for pod in pods))
    rows = (await world.cri.runtime.ListPodSandbox(api.ListPodSandboxRequest())).items
    assert not rows


async def test_what_is_ended_right_after_its_keeper_died_ends_well(own_world: World) -> None:
    world = own_world
    for _ in range(6):
        pod = await world.pod()
        containers = [await world.run(pod, STAY) for _ in range(3)]
        os.kill(keeper_of(pod.id), signal.SIGKILL)
        await asyncio.gather(*(world.cri.stop(container) for container in containers), stop_pod(world, pod))
        for container in containers:
            status = await world.cri.status(container)
            assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
        pod = await world.pod()
        container = await world.run(pod, STAY)
        os.kill(keeper_of(pod.id), signal.SIGKILL)
        await asyncio.gather(*(world.cri.remove_pod(pod.id) for _ in range(2)), world.cri.remove(container))
    log = world.instance.log()
    assert "never retrieved" not in log
    assert "cannot be killed" not in log
    assert "unhandled" not in log
