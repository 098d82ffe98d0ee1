"""Children that share this process's memory: what runs, what comes back, and what a killed one costs."""

import errno
import functools
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from crishim.linux import vfork

pytestmark = pytest.mark.skipif(not vfork.supported(), reason="lacks a C library with makecontext")


@pytest.fixture
def place() -> Iterator[vfork.Vfork]:
    found = vfork.Vfork()
    yield found
    del found
    gc.collect()


def ended(pid: int, pidfd: int) -> int:
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def exit_with(code: int) -> vfork.Program:
    return b"/bin/sh", [b"sh", b"-c", b"exit %d" % code], {}


def never(number: int) -> None:
    raise AssertionError(f"execve failed with {number}")


def test_the_program_gets_arguments_environment_and_descriptors(place: vfork.Vfork) -> None:
    reading, writing = os.pipe()

    def body() -> vfork.Program:
        os.dup2(writing, 1)
        return b"/bin/sh", [b"sh", b"-c", b'printf "%s %s %s" "$0" "$A" "$#"', b"x y", b"z"], {b"A": b"\xff="}

    pid, pidfd = place.start(0, body, never)
    os.close(writing)
    assert os.read(reading, 100) == b"x y \xff= 1"
    os.close(reading)
    assert ended(pid, pidfd) == 0


def test_what_the_body_writes_is_in_this_memory_and_what_it_does_to_itself_is_not(place: vfork.Vfork) -> None:
    seen: list[object] = []

    def body() -> vfork.Program:
        os.chdir("/")
        os.umask(0o123)
        os.close(0)
        seen.extend([os.getpid(), {"a": [1, 2]}])
        return b"/bin/true", [b"true"], {}

    before = os.getcwd(), os.stat(0).st_ino
    umask = os.umask(0o022)
    os.umask(umask)
    pid, pidfd = place.start(0, body, never)
    assert seen == [pid, {"a": [1, 2]}]
    assert (os.getcwd(), os.stat(0).st_ino) == before
    assert os.umask(umask) == umask
    assert ended(pid, pidfd) == 0


@pytest.mark.parametrize(
    ("path", "number"),
    [(b"/nowhere/at/all", errno.ENOENT), (b"/etc/passwd", errno.EACCES), (b"/etc/passwd/x", errno.ENOTDIR)],
)
def test_a_refused_program_is_told_with_its_errno(place: vfork.Vfork, path: bytes, number: int) -> None:
    told: list[int] = []
    assert ended(*place.start(0, lambda: (path, [b"x"], {}), told.append)) == vfork.STATUS
    assert told == [number]


def test_a_body_without_a_program_ends_with_the_status(place: vfork.Vfork) -> None:
    assert ended(*place.start(0, lambda: None, never)) == vfork.STATUS


def test_exceptions_and_deep_calls_in_the_body_leave_nothing_behind(place: vfork.Vfork) -> None:
    def deep(n: int) -> int:
        return n if n == 0 else 1 + deep(n - 1)

    def body() -> None:
        try:
            deep(300)
            os.open("/nowhere", os.O_RDONLY)
        except OSError as error:
            told.append(error.errno)

    for _ in range(50):
        told: list[int | None] = []
        assert ended(*place.start(0, body, never)) == vfork.STATUS
        assert told == [errno.ENOENT]
    assert deep(500) == 500


def test_it_costs_no_descriptors_however_often(place: vfork.Vfork) -> None:
    before = os.listdir("/proc/self/fd")
    for number in range(100):
        place.prepare()  # ahead of need, or not: it is the same
        assert ended(*place.start(0, functools.partial(exit_with, number % 7), never)) == number % 7
    assert os.listdir("/proc/self/fd") == before


def test_a_clone_that_the_kernel_refuses_is_an_error_and_the_next_one_works(place: vfork.Vfork) -> None:
    with pytest.raises(OSError, match="clone"):
        place.start(0x00020000 | 0x00000200, lambda: None, never)  # CLONE_NEWNS with CLONE_FS
    assert ended(*place.start(0, lambda: (b"/bin/true", [b"true"], {}), never)) == 0


def test_a_child_that_is_killed_in_its_body_takes_this_process_along() -> None:
    code = """
        import os, signal
        from crishim.linux import vfork
        def body():
            os.kill(os.getpid(), signal.SIGKILL)
        vfork.Vfork().start(0, body, print)
        print("went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "went on" not in done.stdout
    assert done.returncode == vfork.BROKEN or done.returncode < 0


def test_signals_of_the_parent_wait_and_are_handled(place: vfork.Vfork) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    try:
        parent = os.getpid()

        def body() -> vfork.Program:
            os.kill(parent, signal.SIGUSR1)
            return b"/bin/true", [b"true"], {}

        assert ended(*place.start(0, body, never)) == 0
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, old)
