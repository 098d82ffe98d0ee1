"""The arm64 agent's loop and a child's, run by an emulator: what needs no kernel of that machine."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.agent import area, births, elf, layout
from crishim.engine.agent.batch import Batch, Half, Label, decode
from crishim.engine.agent.pods import Ended
from tests.support.abilities import need_program

MACHINE = "aarch64"
PATIENCE = 60.0
SIGCHLD = 17
FIRST = layout.AREA + layout.FIRST


class Emulated:
    """An agent of the other machine, and its keeper's side."""

    def __init__(self, emulator: str, directory: Path) -> None:
        os.chdir(directory)
        (directory / "agent").write_bytes(elf.program(MACHINE))
        os.chmod(directory / "agent", 0o700)
        sock, fd = births.make_socket("agent.sock"), births.make_area("agent.area")
        actions: list[tuple[int, int, int]] = [
            (os.POSIX_SPAWN_DUP2, sock.fileno(), 30),
            (os.POSIX_SPAWN_DUP2, fd, 31),
            (os.POSIX_SPAWN_DUP2, 30, layout.SOCKET),
            (os.POSIX_SPAWN_DUP2, 31, layout.AREA_FD),
        ]
        self.pid = os.posix_spawn(emulator, [emulator, str(directory / "agent")], {}, file_actions=actions)
        sock.close()
        self.agent = area.Agent("agent.sock", fd)
        self.bell = area.Bell(f"keeper-{time.monotonic_ns()}.sock")

    def run(self, batch: Batch, fds: tuple[int, ...] = (), **numbers: int) -> None:
        self.bell.run(self.agent, batch.finish().fill(**numbers), fds, PATIENCE)

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.bell.close()
        self.agent.close()


@pytest.fixture
def emulated(tmp_path: Path, test_leaks: None) -> Iterator[Emulated]:
    emulator = need_program("qemu-aarch64", "qemu-user")
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    made = Emulated(emulator, tmp_path)
    try:
        yield made
    finally:
        made.close()
        os.fchdir(before)
        os.close(before)


def batch() -> Batch:
    return Batch(MACHINE, FIRST)


def test_batches_run_with_arguments_of_every_kind(emulated: Emulated) -> None:
    reading, writing = os.pipe()
    made = batch()
    text = made.text("constant, ")
    pair = made.words(10)
    came = Half(layout.AREA + layout.RECEIVED + layout.CMSG_DATA)
    made.call("write", came, text, Half(pair))
    copy = made.call("dup", came)
    made.call("write", copy, made.text("result"), 6)
    made.call("close", copy)
    made.call("close", came)
    emulated.run(made, (writing,))
    os.close(writing)
    assert os.read(reading, 100) == b"constant, result"
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_errnos_expectations_and_skips(emulated: Emulated) -> None:
    made = batch()
    end, other = Label(), Label()
    room = made.words(0x1234)
    made.call("close", 900, allow=(1, 2, 3, 9))
    made.call("getpid", expect=(room, 0xFF00, 0x1200))
    made.call("getpid", expect=(room, 0xFF, 1))
    made.otherwise(other)
    made.call("close", 901)
    made.place(other)
    made.call("getppid")
    made.then(end)
    made.call("close", 902)
    made.place(end)
    made.call("getuid")
    emulated.run(made)
    assert [emulated.agent.result(number) for number in (0, 3, 5)] == [-9, 0, 0]


def test_the_first_failure_stops_it_and_is_told(emulated: Emulated) -> None:
    made = batch()
    made.call("getpid")
    made.call("close", 900)
    made.call("getuid")
    with pytest.raises(area.BatchFailedError) as caught:
        emulated.run(made)
    assert (caught.value.record.position, caught.value.record.errno) == (1, 9)
    emulated.run(batch())


def test_a_child_runs_calls_of_its_own_reports_and_ends(emulated: Emulated) -> None:
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    os.posix_fallocate(slot, 0, layout.PAGE)
    child = Batch(MACHINE, layout.SLOT)
    child.call("dup3", layout.STAGE + 1, layout.SOCKET, os.O_CLOEXEC)
    child.stop("here", layout.SOCKET)
    child.call("close", 900)
    os.pwrite(slot, child.finish().content, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = batch()
    for number in range(2):
        made.call("dup3", Half(layout.AREA + layout.RECEIVED + layout.CMSG_DATA + 4 * number), layout.STAGE + number, 0)
    made.call("mmap", layout.SLOT, layout.PAGE, 3, 0x11, layout.STAGE, 0)
    made.call("clone", SIGCHLD, 0, 0, 0, 0, result="pid")
    made.child(layout.SLOT)
    made.call("munmap", layout.SLOT, layout.PAGE)
    made.call("close_range", layout.STAGE, layout.STAGE_LAST, 0, allow=(38,))  # not every emulator has it
    emulated.run(made, (slot, theirs.fileno()))
    theirs.close()
    ours.settimeout(PATIENCE)
    assert len(ours.recv(4096)) == 8
    ours.send(b"goes on.")
    record = decode(ours.recv(4096))
    assert (record.position, record.errno) == (3, 9)
    ended = Ended(MACHINE)
    status = None
    while status is None:
        emulated.bell.run(emulated.agent, ended.look.fill(pid=emulated.agent.result(3)), (), PATIENCE)
        status = ended.status(emulated.agent.read(0, layout.AREA_SIZE))
    assert status == 127
    ours.close()
    os.close(slot)
