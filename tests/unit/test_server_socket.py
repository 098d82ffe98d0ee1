"""The server's socket: modes, stale ones, foreign ones, long paths."""

import os
import socket
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest

from crishim import errors
from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim._proto.runtime.v1 import api_pb2_grpc as rpc
from tests.unit.test_server_rpc import World, serving


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "run" / "cri.sock"))
    async with serving(tmp_path) as world:
        assert (await world.cri.Version(pb.VersionRequest())).runtime_name == "crishim"


async def test_a_living_server_is_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        with pytest.raises(errors.AlreadyExistsError, match="another server answers there"):
            await World(tmp_path).server.start()
        assert (await world.cri.Version(pb.VersionRequest())).runtime_name == "crishim"


async def test_a_file_at_the_sockets_path_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cri.sock").write_text("precious")
    with pytest.raises(errors.FailedPreconditionError, match="is no socket"):
        await World(tmp_path).server.start()
    assert (tmp_path / "run" / "cri.sock").read_text() == "precious"


async def test_a_path_beyond_the_kernels_limit(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    world = World(deep)
    await world.server.start()
    try:
        directory = os.open(os.path.dirname(world.path), os.O_PATH)
        async with grpc.aio.insecure_channel(f"unix:/proc/self/fd/{directory}/cri.sock") as channel:
            answer = await rpc.RuntimeServiceStub(channel).Version(pb.VersionRequest())
        os.close(directory)
        assert answer.runtime_name == "crishim"
    finally:
        await world.server.stop(0)
    assert not os.path.exists(world.path)


async def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o750)
    os.chmod(tmp_path / "run", 0o750)
    async with serving(tmp_path):
        assert stat.S_IMODE(os.stat(tmp_path / "run").st_mode) == 0o750
