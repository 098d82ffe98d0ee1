"""The real crictl against the server, with a runtime and images that need no kernel behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crishim.pods.views import ContainerState
from crishim.server.service import Server
from tests.fakes.cri_backend import IMAGE_ID, FakeImages, FakeObserver, FakeRuntime, container_view, sandbox_view
from tests.support.instance import crictl_path


class World:
    def __init__(self, path: Path) -> None:
        self.crictl = crictl_path()
        self.runtime = FakeRuntime([sandbox_view(1)], [container_view(1), container_view(2, ContainerState.EXITED)])
        self.images = FakeImages()
        self.socket = str(path / "cri.sock")

    async def run(self, *words: str, status: int = 0) -> str:
        endpoint = f"unix://{self.socket}"
        command = [self.crictl, "--config", "/dev/null", "-r", endpoint, "-i", endpoint, "-t", "20s", *words]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        assert process.returncode == status, err.decode()
        return (out if status == 0 else err).decode()

    async def json(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "-o", "json"))


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[World]:
    world = World(path)
    server = Server(world.runtime, world.images, world.socket, FakeObserver())
    await server.start()
    try:
        yield world
    finally:
        await server.stop(0)


async def test_version_and_info(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        assert "RuntimeName:  crishim" in await world.run("version")
        info = json.loads(await world.run("info"))
        conditions = {item["type"]: item["status"] for item in info["status"]["conditions"]}
        assert conditions == {"RuntimeReady": True, "NetworkReady": False}
        assert info["config"]["stateDir"] == "/run/crishim"
        assert [handler.get("name", "") for handler in info["runtimeHandlers"]] == ["", "test-handler"]


async def test_ps_and_pods(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        assert (await world.run("ps", "-q")).split() == [container_view(1).id]
        everything = await world.json("ps", "-a")
        assert {item["id"]: item["state"] for item in everything["containers"]} == {
            container_view(1).id: "CONTAINER_RUNNING",
            container_view(2).id: "CONTAINER_EXITED",
        }
        pods = await world.json("pods")
        assert [(item["id"], item["metadata"]["name"]) for item in pods["items"]] == [(sandbox_view(1).id, "pod-1")]


async def test_inspect_stats_and_images(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        shown = json.loads(await world.run("inspect", container_view(1).id))
        assert (shown["status"]["imageId"], shown["info"]["pid"]) == (IMAGE_ID, 42)
        pod = json.loads(await world.run("inspectp", sandbox_view(1).id))
        assert pod["status"]["network"]["ip"] == "10.0.0.1"
        stats = await world.json("stats")
        assert stats["stats"][0]["memory"]["workingSetBytes"]["value"] == "1000000"
        usage = await world.json("statsp")
        assert usage["stats"][0]["linux"]["network"]["defaultInterface"]["name"] == "eth0"
        images = await world.json("images")
        assert [item["id"] for item in images["images"]] == [IMAGE_ID]
        assert IMAGE_ID in await world.run("pull", "docker.io/library/busybox:latest")


async def test_exec_sync_shows_output_and_exit_code(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        error = await world.run("exec", "-s", "c1", "true", status=1)
        assert "command 'true' exited with 3: err" in error
        assert ("exec_sync", "c1", ("true",), 0) in world.runtime.calls


async def test_errors_reach_the_person_as_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        error = await world.run("stop", "--timeout", "-5", "abc", status=1)
        assert "timeout: must be a number of seconds from 0 on, is -5" in error
        missing = await world.run("start", "", status=1)
        assert "container_id: is missing" in missing or "ID cannot be empty" in missing
        attach = await world.run("attach", "abc", status=1)
        assert "does not have streaming sessions" in attach
