"""Whether a child has run its program: asked while it is still on its way to it, and when it never gets there."""

import os
import signal
from collections.abc import Callable

from crishim.engine.keeper.children import Child


def inspected(child: Callable[[], None], opened: int) -> Child:
    """Fork `child`, let it go on a while after it is looked at, and look at it."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(9)
    releaser = os.fork()
    if releaser == 0:
        signal.sigtimedwait((), 0.1)
        os.write(opened, b"1")
        os._exit(0)
    found = Child(pid, -1, lambda _status: None)
    found.inspect()
    os.waitpid(pid, 0)
    os.waitpid(releaser, 0)
    return found


def test_one_that_is_about_to_exec_is_waited_for() -> None:
    """As an exec looks to the parent of a vfork: woken, though the process does not count as one that has exec'd."""
    reading, writing = os.pipe()

    def child() -> None:
        os.read(reading, 1)
        os.execv("/bin/true", ["true"])

    assert inspected(child, writing).ran
    os.close(reading)
    os.close(writing)


def test_one_that_ends_without_an_exec_has_not_run() -> None:
    reading, writing = os.pipe()
    assert not inspected(lambda: os._exit(len(os.read(reading, 1))), writing).ran
    os.close(reading)
    os.close(writing)
