"""Save, Load and Import over the real grpc server and by the command line; no store behind it."""

import asyncio
import errno
import os
import pty
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim._proto.crishim.v1 import images_pb2_grpc as rpc
from crishim.errors import DataLossError, InternalError
from crishim.images.archive.api import Form, Order
from crishim.server.service import Server
from tests.fakes.archives import FakeArchives
from tests.fakes.cri_backend import FakeImages, FakeObserver, FakeRuntime

CODE = grpc.StatusCode


class World:
    """A server with its fakes and a stub."""

    def __init__(self, path: Path) -> None:
        images = FakeImages()
        self.archives: FakeArchives = images.archives
        self.observer = FakeObserver()
        self.socket = str(path / "run" / "cri.sock")
        self.server = Server(FakeRuntime([], []), images, self.socket, self.observer)
        self.stub: Any = None

    def last(self) -> tuple[object, ...]:
        """Return the last call that the archives have seen."""
        return self.archives.calls[-1]

    async def run(self, *words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run a command in a process of its own."""
        argv = [sys.executable, "-W", "error", "-m", "crishim", words[0], "--socket", self.socket, *words[1:]]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL} if "input" not in more else {}
        return await asyncio.to_thread(
            lambda: subprocess.run(argv, check=False, timeout=60, **{"capture_output": True, **options, **more})
        )


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[World]:
    made = World(path)
    await made.server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{made.socket}") as channel:
            made.stub = rpc.ImagesStub(channel)
            yield made
    finally:
        await made.server.stop(0)


def loads(*pieces: bytes, name: str = "") -> Iterator[pb.LoadRequest]:
    yield pb.LoadRequest(options=pb.LoadOptions(name=name))
    for piece in pieces:
        yield pb.LoadRequest(data=piece)


# --- RPCs ------------------------------------------------------------------------------------------------------------


async def test_save_streams_the_archive(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        for asked, form in (
            (pb.ARCHIVE_FORMAT_UNSPECIFIED, Form.OCI),
            (pb.ARCHIVE_FORMAT_OCI, Form.OCI),
            (pb.ARCHIVE_FORMAT_DOCKER, Form.DOCKER),
        ):
            pieces = [a.data async for a in world.stub.Save(pb.SaveRequest(images=["a", "b"], format=asked))]
            assert pieces == list(world.archives.pieces)
            assert world.last() == ("save", ("a", "b"), form)
        assert world.archives.closed == 3
        for request, code, part in (
            (pb.SaveRequest(images=["absent"]), CODE.NOT_FOUND, "absent"),
            (pb.SaveRequest(images=["a", ""]), CODE.INVALID_ARGUMENT, "images[1]: is missing"),
            (pb.SaveRequest(images=["a"], format=9), CODE.INVALID_ARGUMENT, "format: 9"),  # type: ignore[arg-type]
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await world.stub.Save(request).read()
            assert caught.value.code() is code
            assert part in str(caught.value.details())


async def test_a_reader_who_leaves_closes_the_archive(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.archives.pieces = [bytes(1 << 20)] * 1000
        call = world.stub.Save(pb.SaveRequest(images=["a"]))
        await call.read()
        call.cancel()
        await world.server.calls.wait_idle()
        assert world.archives.closed == 1
        assert world.observer.finished == [("Images.Save", "CANCELLED")]


async def test_load_and_import_take_streams(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        progress, result = [a async for a in world.stub.Load(loads(b"a", b"", b"bc", name="n"))]
        assert (progress.progress.items[0].id, progress.progress.items[0].current) == ("archive", 3)
        assert [(image.id, list(image.names)) for image in result.result.images] == [
            ("sha256:1", ["docker.io/library/a:1", "docker.io/library/a:2"]),
            ("sha256:2", []),
        ]
        assert world.last() == ("load", "n", b"abc")
        options = pb.ImportOptions(name="n", changes=["USER 1"], message="m", platform="linux/arm64")
        messages = [pb.ImportRequest(options=options), pb.ImportRequest(data=b"abc")]
        progress, result = [a async for a in world.stub.Import(iter(messages))]
        assert (result.result.id, result.result.name) == ("sha256:3", "n")
        assert world.last() == ("import", Order("n", ("USER 1",), "m", "linux/arm64"), b"abc")


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "options: must be the first message"),
        ([pb.LoadRequest()], "options: must be the first message"),
        ([pb.LoadRequest(data=b"a")], "options: must be the first message"),
        ([*loads(b"a"), pb.LoadRequest(options=pb.LoadOptions())], "the first message of the stream only"),
        ([*loads(b"a"), pb.LoadRequest()], "the first message of the stream only"),
    ],
)
async def test_streams_that_are_out_of_order(tmp_path: Path, messages: Sequence[pb.LoadRequest], part: str) -> None:
    async with serving(tmp_path) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in world.stub.Load(iter(messages)):
                pass
        assert caught.value.code() is CODE.INVALID_ARGUMENT
        assert part in str(caught.value.details())


# --- commands --------------------------------------------------------------------------------------------------------


async def test_save_to_file_and_pipe(tmp_path: Path) -> None:
    whole = b"a" * 1000 + b"b" * 24
    target = tmp_path / "saved.tar"
    async with serving(tmp_path) as world:
        done = await world.run("save", "x")
        assert (done.returncode, done.stdout, done.stderr) == (0, whole, b"")
        assert world.last() == ("save", ("x",), Form.DOCKER)
        done = await world.run("save", "--format", "oci-archive", "-o", str(target), "x", "y")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert world.last() == ("save", ("x", "y"), Form.OCI)
        assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (whole, 0o600)
        link = tmp_path / "link.tar"
        link.symlink_to(target)
        target.write_bytes(b"old")
        assert (await world.run("save", "-o", str(link), "x")).returncode == 0
        assert (link.is_symlink(), target.read_bytes()) == (True, whole)
        assert (await world.run("save", "-o", "/dev/null", "x")).returncode == 0


async def test_a_save_that_fails_leaves_no_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        for words, status, part in (
            (("-o", str(tmp_path / "new.tar"), "absent"), 1, "no image absent is here"),
            (("-o", str(tmp_path / "no" / "new.tar"), "x"), 1, "No such file or directory"),
            (("-o", "/dev/full", "x"), 1, "writing /dev/full: No space left on device"),
            ((), 2, "IMAGE"),
            (("--format", "zip", "x"), 2, "--format"),
        ):
            done = await world.run("save", *words)
            assert (done.returncode, done.stdout) == (status, b""), done.stderr
            assert part in done.stderr.decode()
            assert done.stderr.count(b"\n") == 1
        old = tmp_path / "old.tar"
        old.write_bytes(b"old")
        assert (await world.run("save", "-o", str(old), "absent")).returncode == 1
        assert old.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["old.tar", "run"]


async def test_load_and_import_from_file_and_pipe(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    source = tmp_path / "in.tar"
    source.write_bytes(data)
    names = b"docker.io/library/a:1\ndocker.io/library/a:2\nsha256:2\n"
    async with serving(tmp_path) as world:
        done = await world.run("load", "-q", "-i", str(source), "--name", "n")
        assert (done.returncode, done.stdout, done.stderr) == (0, names, b"")
        assert world.last() == ("load", "n", data)
        done = await world.run("load", input=data)
        assert (done.returncode, done.stdout) == (0, names)
        assert done.stderr.startswith(b"archive: done")
        assert world.last() == ("load", "", data)
        done = await world.run("import", "-q", "-i", str(source), "-c", "CMD x", "-c", "USER y", "-m", "words", "n:1")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"sha256:3\n", b"")
        assert world.last() == ("import", Order("n:1", ("CMD x", "USER y"), "words"), data)
        done = await world.run("import", "--platform", "linux/arm64", "-q", input=b"")
        assert (done.returncode, done.stdout) == (0, b"sha256:3\n")
        assert world.last() == ("import", Order(platform="linux/arm64"), b"")


async def test_input_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as world:
        for path, part in (
            (str(tmp_path / "absent"), "absent: No such file or directory"),
            (str(tmp_path), "Is a directory"),
            ("/proc/self/mem", f"reading /proc/self/mem: {os.strerror(errno.EIO)}"),
        ):
            for command in ("load", "import"):
                done = await world.run(command, "-q", "-i", path)
                assert (done.returncode, done.stdout) == (1, b"")
                assert part in done.stderr.decode()
                assert done.stderr.count(b"\n") == 1
        done = await asyncio.to_thread(_without_input, world.socket)
        assert (done.returncode, done.stderr) == (1, b"crishim: standard input: Bad file descriptor\n")
        nobody = tmp_path / "nobody.sock"
        done = await world.run("load", "-i", "/etc/passwd", "--socket", str(nobody))
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert done.stderr.startswith(f"crishim: no daemon serves on {nobody}".encode())
        assert world.archives.calls == []

        async def refuse(*_: object) -> None:
            raise DataLossError("the archive is bad")

        # The daemon's answer is told although standard input goes on.
        monkeypatch.setattr(world.archives, "load", refuse)
        reading, writing = os.pipe()
        try:
            os.write(writing, b"beginning")
            done = await world.run("load", "-q", stdin=reading)
            assert (done.returncode, done.stderr) == (1, b"crishim: the archive is bad\n")
        finally:
            os.close(reading)
            os.close(writing)


def _without_input(socket: str) -> "subprocess.CompletedProcess[bytes]":
    script = 'exec "$0" -m crishim load --socket "$1" <&-'
    return subprocess.run(["sh", "-c", script, sys.executable, socket], capture_output=True, check=False, timeout=60)


async def test_terminals_are_refused(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        async with serving(tmp_path) as world:
            done = await world.run("save", "x", capture_output=False, stdout=theirs, stderr=subprocess.PIPE)
            assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
            assert b"standard output is a terminal" in done.stderr
            for command in ("load", "import"):
                done = await world.run(command, stdin=theirs)
                assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
                assert b"standard input is a terminal" in done.stderr
            assert world.archives.calls == []
    finally:
        os.close(ours)
        os.close(theirs)


async def test_an_internal_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise InternalError("the disk went away")

    async with serving(tmp_path) as world:
        monkeypatch.setattr(world.archives, "import_image", fail)
        done = await world.run("import", input=bytes(5_000_000))
        assert (done.returncode, done.stderr) == (1, b"crishim: the disk went away\n")
