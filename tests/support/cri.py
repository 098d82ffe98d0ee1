"""A small CRI client over grpc.aio, for scenarios that crictl (one program per call) is too slow for.

Requests are plain dictionaries with the CRI's field names, as in `configs`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import grpc
import pytest
from google.protobuf import json_format

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim._proto.runtime.v1 import api_pb2_grpc as stubs
from tests.support.configs import Config

T = TypeVar("T")
_OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
]


class Cri:
    """Both services of one instance; an async context manager."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix://{socket}", options=_OPTIONS)
        self.runtime: Any = stubs.RuntimeServiceStub(self._channel)
        self.image: Any = stubs.ImageServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)

    async def pull(self, reference: str) -> str:
        """Pull an image; return its id."""
        reply = await self.image.PullImage(api.PullImageRequest(image=api.ImageSpec(image=reference)))
        return str(reply.image_ref)

    async def run_pod(self, config: Config, **options: Any) -> str:
        """RunPodSandbox; return the id."""
        request = api.RunPodSandboxRequest(config=sandbox_message(config))
        return str((await self.runtime.RunPodSandbox(request, **options)).pod_sandbox_id)

    async def create(self, pod: str, config: Config, sandbox: Config) -> str:
        """CreateContainer; return the id."""
        request = api.CreateContainerRequest(
            pod_sandbox_id=pod, config=container_message(config), sandbox_config=sandbox_message(sandbox)
        )
        return str((await self.runtime.CreateContainer(request)).container_id)

    async def start(self, container: str) -> None:
        """StartContainer."""
        await self.runtime.StartContainer(api.StartContainerRequest(container_id=container))

    async def run(self, pod: str, config: Config, sandbox: Config) -> str:
        """CreateContainer and StartContainer; return the id."""
        container = await self.create(pod, config, sandbox)
        await self.start(container)
        return container

    async def status(self, container: str) -> Any:
        """Return ContainerStatus's status."""
        reply = await self.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=container))
        return reply.status

    async def wait_exit(self, container: str, seconds: float = 60.0) -> Any:
        """Wait until the container is EXITED; return its status. Fails when `seconds` pass."""
        async with asyncio.timeout(seconds):
            while (status := await self.status(container)).state != api.CONTAINER_EXITED:
                await asyncio.sleep(0.01)
        return status

    async def stop(self, container: str, grace: int = 0) -> None:
        """StopContainer."""
        await self.runtime.StopContainer(api.StopContainerRequest(container_id=container, timeout=grace))

    async def remove(self, container: str) -> None:
        """RemoveContainer."""
        await self.runtime.RemoveContainer(api.RemoveContainerRequest(container_id=container))

    async def remove_pod(self, pod: str) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        await self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
        await self.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=pod))

    async def pod_stats(self, pod: str) -> Any:
        """PodSandboxStats; return the stats."""
        return (await self.runtime.PodSandboxStats(api.PodSandboxStatsRequest(pod_sandbox_id=pod))).stats

    async def exec(self, container: str, *command: str, seconds: int = 0) -> Any:
        """ExecSync; return the reply (stdout, stderr, exit_code)."""
        request = api.ExecSyncRequest(container_id=container, cmd=list(command), timeout=seconds)
        return await self.runtime.ExecSync(request)

    async def output(self, container: str, *command: str) -> str:
        """ExecSync that must succeed; return its stdout as text."""
        reply = await self.exec(container, *command)
        if reply.exit_code != 0:
            raise AssertionError(f"{command}: {reply.exit_code}: {reply.stderr!r}")
        return bytes(reply.stdout).decode("utf-8", "surrogateescape")


def sandbox_message(config: Config) -> Any:
    """Return the PodSandboxConfig that a dictionary describes."""
    return json_format.ParseDict(config, api.PodSandboxConfig())


def container_message(config: Config) -> Any:
    """Return the ContainerConfig that a dictionary describes."""
    return json_format.ParseDict(config, api.ContainerConfig())


async def refused(call: Awaitable[Any], code: grpc.StatusCode) -> str:
    """Assert that a call fails with this code; return the sentence that came with it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = caught.value.details() or ""
    assert caught.value.code() == code, f"{caught.value.code()} {details!r} instead of {code}"
    assert "Traceback" not in details
    return details


async def attempt(call: Awaitable[T]) -> tuple[T | None, grpc.aio.AioRpcError | None]:
    """Await a call that may be refused; return (result, None) or (None, the error)."""
    try:
        return await call, None
    except grpc.aio.AioRpcError as error:
        return None, error


async def bounded(limit: int, work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all of `work`, at most `limit` at a time; return the results in order, the first error is raised."""
    gate = asyncio.Semaphore(limit)

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await job()

    return list(await asyncio.gather(*(one(job) for job in work)))


def log_records(path: str) -> list[tuple[str, str, str, bytes]]:
    """Parse a CRI log into (time, stream, tag, bytes without the newline); a line that is not one fails the test."""
    with open(path, "rb") as file:
        data = file.read()
    if data and not data.endswith(b"\n"):
        raise AssertionError(f"{os.path.basename(path)} ends within a record: {data[-80:]!r}")
    records = []
    for line in data.split(b"\n")[:-1]:
        stamp, stream, tag, content = line.split(b" ", 3)
        records.append((stamp.decode(), stream.decode(), tag.decode(), content))
    return records


def log_text(path: str, stream: str = "stdout") -> bytes:
    """Return the bytes that one stream wrote, as the log tells: P joins, F ends a line."""
    parts = [content + (b"\n" if tag == "F" else b"") for _, s, tag, content in log_records(path) if s == stream]
    return b"".join(parts)
