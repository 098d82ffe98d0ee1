"""Output from pipes to logs: nothing lost or doubled, at whichever step its keeper is killed; and the state file."""

import contextlib
import errno
import fcntl
import os
import random
import re
import signal
import stat
import tty
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from crishim.engine.execute.report import StepError
from crishim.engine.keeper import staging
from crishim.engine.keeper.logs import LogFile
from crishim.engine.keeper.loop import Loop
from crishim.engine.keeper.records import LINE_LIMIT
from crishim.engine.keeper.staging import Output
from crishim.engine.keeper.state import SHORT, State
from crishim.engine.messages import ContainerRecord, Running
from tests.support.strikes import Strikes

RECORD = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) ([^\n]*)\n")
CONTAINER = cast("ContainerRecord", {"version": 2, "id": "c", "block": 3, "log_path": "log"})
RUNNING = cast("Running", {"id": "c", "pid": 7, "start_time": 8, "started_at": 9, "user": [0, 0, [4]]})


def text(stream: str, *paths: Path) -> bytes:
    """Return what the records of a stream stand for; every byte of the files must belong to a record, in order."""
    data = b"".join(path.read_bytes() for path in paths if path.exists())
    found = RECORD.findall(data)
    assert b"".join(b"%b %b %b %b\n" % record for record in found) == data
    assert [stamp for stamp, *_ in found] == sorted(stamp for stamp, *_ in found)
    assert all(len(line) <= LINE_LIMIT for *_, line in found)
    mine = [(tag, line) for _, name, tag, line in found if name == stream.encode()]
    return b"".join(line + (b"\n" if tag == b"F" else b"") for tag, line in mine)


class Loops:
    """A registry that calls nobody."""

    def __init__(self) -> None:
        self.ready: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        self.ready[fd] = callback

    def remove(self, fd: int) -> None:
        del self.ready[fd]


class Held:
    """What an agent holds of a container, and the container's own ends."""

    def __init__(self, directory: Path, flags: int = 0) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.old = directory / "log.1"
        self.state = str(directory / "c-c")
        self.pipes = {name: os.pipe2(os.O_CLOEXEC | flags) for name in ("stdout", "stderr")}
        self.staging = os.pipe2(os.O_CLOEXEC)
        State.make(self.state, CONTAINER).close()

    def write(self, name: str, data: bytes) -> None:
        assert os.write(self.pipes[name][1], data) == len(data)

    def end(self) -> None:
        """Let the container close its ends."""
        for name, (reading, writing) in self.pipes.items():
            if writing >= 0:
                os.close(writing)
            self.pipes[name] = (reading, -1)

    def keeper(self, size: int = 0) -> Output:
        """Return the output, served by a keeper that has just come."""
        reading, writing = self.staging
        output = Output(
            Loops(), LogFile.adopt(str(self.log)), State.load(self.state), (os.dup(reading), os.dup(writing))
        )
        output.recover()
        for name, (reading, _) in self.pipes.items():
            output.add(name, os.dup(reading))
        for stream in output._streams:
            stream.size = size or stream.size
        return output

    def close(self) -> None:
        self.end()
        for reading, _ in self.pipes.values():
            os.close(reading)
        for fd in self.staging:
            os.close(fd)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    found = Held(tmp_path)
    yield found
    found.close()


@contextlib.contextmanager
def fresh(tmp_path: Path) -> Iterator[Held]:
    tmp_path.mkdir()
    found = Held(tmp_path)
    try:
        yield found
    finally:
        found.close()


def take_all(output: Output) -> None:
    """Take chunks from both streams in turn, until there are none."""
    while sum(output._take(stream) for stream in output._streams if stream.fd >= 0):
        pass


def forked(run: Callable[[], None]) -> bool:
    """Run in a child; tell whether it was killed instead of coming to its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            run()
            status = 0
        os._exit(status)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0
    return False


SAID = {
    "stdout": b"".join(b"line %d\n" % n for n in range(900)) + b"x" * 40_000 + b"\nshort\nfrom here",
    "stderr": b"y" * 18_000 + b"".join(b"\nerror %d" % n for n in range(900)),
}


def serve(held: Held, strikes: Strikes | None = None) -> None:
    """Be a keeper: go on where another one was, rotate once, come to the end."""
    if strikes is not None:
        strikes.arm()
    output = held.keeper(size=13_000)
    for stream in output._streams:
        output._take(stream)
    if not held.old.exists():
        held.log.rename(held.old)
        output.reopen()
    take_all(output)
    output.drain()


def complete(held: Held) -> None:
    for name, said in SAID.items():
        assert text(name, held.old, held.log) == said


def said(held: Held) -> Held:
    for name, data in SAID.items():
        held.write(name, data)
    held.end()
    return held


def test_a_keeper_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    struck = 0
    killed = True
    while killed:
        struck += 1
        with fresh(tmp_path / str(struck)) as held:
            said(held)
            killed = forked(partial(serve, held, Strikes(struck)))
            assert not forked(partial(serve, held))
            complete(held)
    assert struck > 150


@pytest.mark.parametrize("seed", range(40))
def test_keepers_killed_one_after_another_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with fresh(tmp_path / "held") as held:
        said(held)
        while forked(partial(serve, held, Strikes(chance.randrange(5, 120)))):
            pass
        complete(held)


def test_a_keeper_that_lets_go_leaves_the_unfinished_line_to_the_next(held: Held) -> None:
    held.write("stdout", b"one\ntw")
    first = held.keeper()
    take_all(first)
    first.close()
    assert text("stdout", held.log) == b"one\n"
    held.write("stdout", b"o\nthree")
    second = held.keeper()
    take_all(second)
    second.drain()
    assert text("stdout", held.log) == b"one\ntwo\nthree"
    held.keeper().drain()  # the end is not stored yet, and a third keeper does it all once more
    assert text("stdout", held.log) == b"one\ntwo\nthree"


def test_a_log_that_was_renamed_and_not_reopened_is_gone_on_with(held: Held) -> None:
    held.write("stdout", b"one\n")
    first = held.keeper()
    take_all(first)
    held.log.rename(held.old)
    first.close()
    os.mkfifo(f"{held.log}.0")
    os.symlink(held.old, f"{held.log}.00")
    second = held.keeper()
    held.write("stdout", b"two\n")
    take_all(second)
    assert held.old.read_bytes().count(b"\n") == 2
    second.reopen()
    held.write("stdout", b"three\n")
    take_all(second)
    second.close()
    assert text("stdout", held.log) == b"three\n"
    assert text("stdout", held.old, held.log) == b"one\ntwo\nthree\n"


def test_an_adopted_log_that_cannot_be_opened_holds_nothing_up(held: Held, capfd: pytest.CaptureFixture[str]) -> None:
    held.log.mkdir()
    output = held.keeper()
    held.write("stdout", b"dropped\n")
    take_all(output)
    assert "is a directory" in capfd.readouterr().err
    held.log.rmdir()
    output.reopen()
    held.write("stdout", b"kept\n")
    take_all(output)
    output.drain()
    assert text("stdout", held.log) == b"kept\n"
    with pytest.raises(StepError):
        LogFile(str(held.directory))


def test_a_container_without_a_log_is_drained(held: Held) -> None:
    reading, writing = held.staging
    output = Output(Loops(), LogFile(""), State.load(held.state), (os.dup(reading), os.dup(writing)))
    output.add("stdout", os.dup(held.pipes["stdout"][0]))
    held.write("stdout", b"into the void\nand more")
    take_all(output)
    assert output.taken == 22
    output.reopen()
    output.drain()
    assert list(held.directory.iterdir()) == [Path(held.state)]


def test_packets_come_whole_and_never_into_anothers_log(tmp_path: Path) -> None:
    """A pipe's writer may make packets of what it writes (O_DIRECT): read(2) then takes one at a time."""
    with fresh(tmp_path / "honest") as honest:
        (tmp_path / "odd").mkdir()
        odd = Held(tmp_path / "odd", os.O_DIRECT)
        outputs = [odd.keeper(), honest.keeper()]
        for n in range(12):
            odd.write("stdout", b"packet %d\n" % n)
        honest.write("stdout", b"mine\n")
        for output in outputs:
            take_all(output)
            output.drain()
        assert text("stdout", odd.log) == b"".join(b"packet %d\n" % n for n in range(12))
        assert text("stdout", honest.log) == b"mine\n"
        odd.close()


@pytest.mark.parametrize("name", ["read", "writev", "splice"])
def test_a_chunk_that_failed_is_done_again(held: Held, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever raises in between, memory that is short for one, the next readiness goes on with the same chunk."""
    output = held.keeper()
    held.write("stdout", b"one\ntw")
    calls = {"read": 1, "writev": 1, "splice": 2}
    whole = getattr(os, name)

    def fails(*arguments: object, **named: object) -> object:
        calls[name] -= 1
        if calls[name] == 0:
            raise MemoryError
        return whole(*arguments, **named)

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(MemoryError):
        output._take(output._streams[0])
    held.write("stdout", b"o\n")
    take_all(output)
    output.drain()
    assert text("stdout", held.log) == b"one\ntwo\n"


def test_a_disk_that_is_full_gets_whole_records_only(
    held: Held, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output = held.keeper()
    held.write("stdout", b"first\n")
    take_all(output)
    whole = os.write

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda fd, parts: whole(fd, b"".join(parts)[:20]))
        patch.setattr("crishim.engine.keeper.logs._write_rest", lambda _fd, _rest: 0)
        held.write("stdout", b"second\nthi")
        take_all(output)
    held.write("stdout", b"rd\n")
    take_all(output)
    output.drain()
    assert text("stdout", held.log) == b"first\nthird\n"
    assert "bytes of log dropped" in capfd.readouterr().err


def test_a_long_line_that_has_no_room_is_written_in_pieces(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _at: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    output = held.keeper()
    monkeypatch.setattr(os, "posix_fallocate", full)
    held.write("stdout", b"a" * SHORT)
    take_all(output)
    assert held.log.read_bytes() == b""
    held.write("stdout", b"b")
    take_all(output)
    assert len(held.log.read_bytes()) > SHORT
    held.write("stdout", b"c\n")
    take_all(output)
    output.drain()
    assert text("stdout", held.log) == b"a" * SHORT + b"bc\n"


def test_a_flood_takes_its_turn(tmp_path: Path) -> None:
    """One readiness is one chunk; a stream that keeps its pipe full gets a larger one."""
    with fresh(tmp_path / "flood") as flood, fresh(tmp_path / "quiet") as quiet:
        outputs = [flood.keeper(), quiet.keeper()]
        quiet.write("stdout", b"word\n")
        for _ in range(6):
            flood.write("stdout", (b"x" * 99 + b"\n") * 640)
            for ready in [ready for output in outputs for ready in cast("Loops", output._loop).ready.values()]:
                ready()
        assert outputs[0].taken == 6 * 64_000
        assert text("stdout", quiet.log) == b"word\n"
        assert fcntl.fcntl(flood.pipes["stdout"][0], fcntl.F_GETPIPE_SZ) == 512 * 1024
        flood.write("stdout", (b"x" * 99 + b"\n") * 4000)
        outputs[0].close()
        again = flood.keeper()
        take_all(again)
        assert again.taken == 400_000
        for output in (again, outputs[1]):
            output.drain()
        assert text("stdout", flood.log).count(b"\n") == 6 * 640 + 4000


def test_streams_are_left_at_their_end(held: Held) -> None:
    loop = Loop()
    reading, writing = held.staging
    output = Output(loop, LogFile(str(held.log)), State.load(held.state), (os.dup(reading), os.dup(writing)))
    for name, (fd, _) in held.pipes.items():
        output.add(name, os.dup(fd))
    held.write("stderr", b"last words")
    held.end()
    loop.later(0.05, loop.stop)
    loop.run()
    assert all(stream.fd < 0 for stream in output._streams)
    assert text("stderr", held.log) == b"last words"
    output.drain()
    loop.close()


@pytest.mark.parametrize("spliced", [True, False])
def test_terminals(held: Held, monkeypatch: pytest.MonkeyPatch, spliced: bool) -> None:
    """Where the kernel's tty driver does not splice, what it holds is read and written to the staging pipe."""
    master, slave = os.openpty()
    tty.setraw(slave)
    whole = os.splice

    def refuses(source: int, target: int, size: int, flags: int) -> int:
        if os.isatty(source):
            raise OSError(errno.EINVAL, "splice")
        return whole(source, target, size, flags=flags)

    if not spliced:
        monkeypatch.setattr(os, "splice", refuses)
    reading, writing = held.staging
    output = Output(Loops(), LogFile(str(held.log)), State.load(held.state), (os.dup(reading), os.dup(writing)))
    output.add("stdout", master)
    for n in range(50):
        os.write(slave, b"%d\n" % n * 100)
        take_all(output)
    os.write(slave, b"bye")
    os.close(slave)
    take_all(output)
    assert output._streams[0].fd < 0
    output.drain()
    assert text("stdout", held.log) == b"".join(b"%d\n" % n * 100 for n in range(50)) + b"bye"


def test_a_forked_process_has_a_scratch_pipe_of_its_own(held: Held) -> None:
    mine = staging._shared()
    assert staging._shared() is mine
    assert not forked(lambda: None if staging._shared() is not mine else os._exit(9))


# --- the state file -------------------------------------------------------------------------------


def test_state_is_what_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "c-c")
    state = State.make(path, CONTAINER)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(FileExistsError):
        State.make(path, CONTAINER)
    assert State.load(path).record == CONTAINER
    state.runs(RUNNING)
    assert state.record["running"] == RUNNING
    loaded = State.load(path)
    assert loaded.record == {**CONTAINER, "running": RUNNING}
    loaded.close()
    state.remove()
    assert not os.path.exists(path)


def test_state_of_a_quiet_container_takes_two_pages(tmp_path: Path) -> None:
    state = State.make(str(tmp_path / "c-c"), CONTAINER)
    state.runs(RUNNING)
    for n in range(10):
        for index in (0, 1):
            state.begin(index, 1, (2, 3), 4)
            state.finish(index, b"x" * n)
    assert os.stat(tmp_path / "c-c").st_blocks * 512 <= 2 * 4096
    state.close()


def test_long_lines_are_found_again(tmp_path: Path) -> None:
    path = str(tmp_path / "c-c")
    state = State.make(path, CONTAINER)
    for size in (0, 1, SHORT, SHORT + 1, LINE_LIMIT, 3, LINE_LIMIT):
        for index, letter in enumerate((b"a", b"b")):
            assert state.room(index)
            state.finish(index, letter * size)
        loaded = State.load(path)
        assert loaded.pending == state.pending == [b"a" * size, b"b" * size]
        assert loaded.number == state.number
        loaded.close()
    state.close()


def test_half_made_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c-c"
    State.make(str(path), CONTAINER).close()
    whole = path.read_bytes()
    path.write_bytes(b"")
    damaged = [b"", whole[:4], whole[:4096], b"\0" * 8 + whole[8:], b"{}" * 50_000]
    damaged += [whole[:8] + b"\xff" * 16 + whole[24:], whole[:69_632] + b"{" * 400]
    damaged += [whole[:128] + b"\xff" * 16 + whole[144:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            State.load(str(path))
    with pytest.raises(FileNotFoundError):
        State.load(str(tmp_path / "none"))


def write_running(path: str, strikes: Strikes) -> None:
    state = State.load(path)
    strikes.arm()
    state.runs(RUNNING)


def test_a_kill_while_it_is_written_down_that_it_runs(tmp_path: Path) -> None:
    seen = set()
    for struck in (1, 2):
        path = str(tmp_path / f"c-{struck}")
        State.make(path, CONTAINER).close()

        assert forked(partial(write_running, path, Strikes(struck))) is (struck == 1)
        seen.add("running" in State.load(path).record)
    assert seen == {False, True}
