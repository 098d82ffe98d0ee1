"""How a container's first process comes to be: sharing the keeper's memory until it execs, or as a copy of the keeper.

Sharing is three times as fast (`linux.vfork`), but stops the keeper meanwhile, and a child that is killed in the middle
takes the keeper along. So it is only for plans whose set-up neither waits for anybody nor can be struck by anybody: the
planner decides (`ContainerPlan.shared`).
"""

import _socket
from typing import Any

from crishim.engine import wire
from crishim.engine.execute import container as executor
from crishim.engine.execute import process
from crishim.engine.execute.report import Report, Reporter
from crishim.linux import calls, pages, vfork

_place: list[vfork.Vfork] = []
_pages: pages.Ranges = []


def prepare() -> None:
    """Find out, before anything is forked, whether this interpreter can share its memory with a child."""
    if vfork.supported():
        _place.append(vfork.Vfork())


def expect(ranges: pages.Ranges) -> None:
    """Take note of the memory that a pod's life writes (`engine.rehearsal` finds out)."""
    _pages[:] = ranges


def ready() -> None:
    """Do ahead of need what a start can have done: its contexts made, its pages copied."""
    for place in _place:
        place.prepare()
    pages.populate(_pages)


class Birth:
    """A process that was just made.

    `report` is whole where the child shared the keeper's memory: it runs its program already, or failed. Else `sock`
    is where its words come from. `screened`: it is not in the PID namespace that its program will be in.
    """

    __slots__ = ("pid", "pidfd", "report", "screened", "sock")

    def __init__(
        self, pid: int, pidfd: int, report: Report | None, sock: _socket.socket | None, *, screened: bool = False
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.report = report
        self.screened = screened
        self.sock = sock


def can_share(plan: dict[str, Any]) -> bool:
    """Tell whether this container's first process is to share the keeper's memory."""
    return bool(_place) and plan["shared"]


def share(plan: dict[str, Any], flags: int, stdio: tuple[int, int, int], pod: int | str, place: str) -> Birth:
    """Make the child by `vfork`; returns when it runs its program or has failed."""
    report = Report()

    def refused(number: int) -> None:
        process.report_refusal(program, report, number)

    program: vfork.Program | None = None

    def body() -> vfork.Program | None:
        nonlocal program
        program = executor.run(plan, report, stdio, pod, place)
        return program

    pid, pidfd = _place[0].start(flags, body, refused)
    return Birth(pid, pidfd, report, None)


def copy(
    plan: dict[str, Any],
    flags: int,
    stdio: tuple[int, int, int],
    pod: int | str,
    place: str,
    *,
    born_in: int,
    screen: int,
) -> Birth:
    """Make the child by a fork; `born_in` is the fd of its v2 control group or -1, `screen` as for the executor."""
    ours, theirs = wire.pair()
    try:
        pid, pidfd = calls.clone3(flags, born_in)
        if pid == 0:
            reporter = Reporter(theirs)
            program = executor.run(plan, reporter, stdio, pod, place, born_unified=born_in >= 0, screen=screen)
            process.become(program, reporter)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Birth(pid, pidfd, None, ours, screened=screen >= 0)
