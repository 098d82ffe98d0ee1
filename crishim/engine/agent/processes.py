"""A child's first calls, and what it reads for its keeper before it stops for the first time. Pure.

What comes in between is the root's (`roots`) or the joining of another process's namespaces (`starts`); what follows
the stop is `lowering`.
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from crishim.engine.agent.batch import Batch, Label, Place, Result
from crishim.engine.agent.kernel import CWD, Kernel
from crishim.engine.agent.layout import ARGUMENTS, Own, Stage
from crishim.linux import calls

WINDOW = 16 * 1024
"""How much of /etc/passwd and of /etc/group is read at a time; the keeper sends the child back for more."""
STOP = "users"
READ_OFFSET = ARGUMENTS + 3 * 8
"""Where in a read's record its offset in the file stands."""
_SIGKILL = 9
_PROCESSORS = 1024  # bytes of a mask: 8192 processors, the most that a kernel can have
_SCHED_ATTR_SIZE = 48


def settle(
    kernel: Kernel,
    group: dict[str, Any],
    adjustment: int | None,
    streams: Sequence[int],
    keep: Sequence[tuple[int, int]] = (),
) -> None:
    """Make a child's first calls: its own descriptors and no others, its control group, nothing inherited.

    Args:
        kernel: where the calls go.
        group: the JSON form of a CgroupPlan; on v2 the child was born in its group.
        adjustment: oom_score_adj, or None.
        streams: those of `Stage` that become 0, 1 and 2; until one does, it is the agent's /dev/null.
        keep: (which one of `Own`, the descriptor of the agent's that becomes it), besides the report and the streams.
    """
    batch = kernel.batch
    batch.reason("dies with its agent until it has its own ids; nothing of the agent's stays but what it is given")
    kernel.duplicate(Stage.REPORT, Own.REPORT)
    kernel.prctl(calls.PR_SET_PDEATHSIG, _SIGKILL)
    for fd in streams:
        kernel.duplicate(fd, fd - Stage.STDIN, keep=True)
    given = dict(keep)
    for number in range(Own.REPORT + 1, Own.FREE):
        # all are taken, so that what the child opens later stands above them and is never in the way of a dup3
        kernel.duplicate(given.get(number, 0), number)
    kernel.close_from(Own.FREE)
    batch.reason("its control group")
    if group["version"] == 1:
        for directory in group["directories"]:
            kernel.write_file(f"{directory}/tasks", b"0")
    batch.reason("what a process inherits")
    if adjustment is not None:
        kernel.write_file("/proc/self/oom_score_adj", b"%d" % adjustment)
    _leave_keeper(batch)
    batch.call("umask", 0)
    batch.call("setsid")
    batch.call("keyctl", calls.KEYCTL_JOIN_SESSION_KEYRING, 0)
    kernel.default_signals()


def _leave_keeper(batch: Batch) -> None:
    """Put back what an administrator may well set for keepers and agents, but not for containers (`linux.inheritance`).

    In the container's group: the kernel cuts the processors down to those of its cpuset.
    """
    refusals = (errno.EINVAL, errno.EPERM, errno.ENOSYS)
    processors = batch.data(b"\xff" * _PROCESSORS, "{all}")
    batch.call("sched_setaffinity", 0, _PROCESSORS, processors, allow=refusals)
    ordinary = batch.data(_SCHED_ATTR_SIZE.to_bytes(4, "little") + bytes(_SCHED_ATTR_SIZE - 4), "{SCHED_OTHER}")
    batch.call("sched_setattr", 0, ordinary, 0, allow=refusals)
    batch.call("ioprio_set", 1, 0, 0, allow=refusals)  # IOPRIO_WHO_PROCESS


class Look:
    """What a child has read when it stops: where that is in its batch.

    A file that is longer than a window is read on by sending the child back: the keeper raises the read's offset
    (`READ_OFFSET`) and lets it go on at `again`. `pid` is where it will write the pid of a process that goes on in its
    place.
    """

    __slots__ = ("again", "group", "group_read", "passwd", "passwd_read", "pid")

    def __init__(self, kernel: Kernel) -> None:
        batch = kernel.batch
        self.pid = batch.words(0)
        batch.reason("the image's users and groups, for the keeper to parse")
        self.passwd, self.passwd_read = self._read(kernel, "/etc/passwd")
        self.group, self.group_read = self._read(kernel, "/etc/group")
        self.again = batch.address(self.passwd_read.position)
        batch.stop(STOP, Own.REPORT)

    @staticmethod
    def _read(kernel: Kernel, path: str) -> tuple[Place, Result]:
        """Read up to `WINDOW` bytes of a regular file; whatever stands in the way, there are no users in it."""
        batch = kernel.batch
        end = Label()
        refusals = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        fd = kernel.openat2(CWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, allow=refusals, other=end)
        kernel.expect_mode(fd, stat.S_IFREG, end)
        kernel.skip_empty(fd, end)
        room = batch.room(WINDOW)
        read = batch.call("pread64", fd, room, WINDOW, 0, allow=(errno.EIO, errno.EINVAL), what=path)
        batch.place(end)
        return room, read
