"""What a process inherits by fork(2) and execve(2) from whoever started the daemon, put back to the kernel's defaults.

Nobody expects a container to depend on the shell, unit or script that the daemon was started from. `leave_starter` is
for the spawner, from which keepers and containers descend: what no process of ours wants to keep. `leave_keeper` is
for a container's process: what an administrator may well set for the daemon and its keepers (processors, priorities),
but not for containers. Descriptors, ids, capabilities, limits, umask, keyring and session are the executor's
(`engine.execute.process`). Not put back, since the kernel gives none of them back or they are meant to be inherited:
no_new_privs, filters and Landlock rules of the daemon's own, its audit login id, speculation controls.

A setting that the kernel does not have, or that this host does not let us change, stays.

Sources: fork(2), execve(2), sigaction(2), sched(7), sched_setattr(2), ioprio_set(2), set_mempolicy(2),
personality(2), and prctl(2) with the pages of its operations.
"""

import _signal  # type: ignore[import-not-found]  # typeshed describes only what `signal` wraps in enums
import ctypes
import os

from crishim.linux import calls

LAST_SIGNAL = 64
TIMER_SLACK = 50_000
"""Nanoseconds; what the kernel gives its first process (init/init_task.c)."""

_PYTHONS = (_signal.SIGPIPE, _signal.SIGXFSZ)
"""What Python ignores, to raise an exception instead; the executor puts these back."""

_OPERATIONS = (
    (calls.PR_SET_TIMERSLACK, TIMER_SLACK),
    (calls.PR_SET_SECUREBITS, 0),
    (calls.PR_SET_TSC, 1),  # may be read
    (calls.PR_MCE_KILL, 0),  # as the machine has it
    (calls.PR_SET_THP_DISABLE, 0),
    (calls.PR_SET_IO_FLUSHER, 0),
    (calls.PR_SET_MEMORY_MERGE, 0),
)
_ALL_PROCESSORS = b"\xff" * 1024  # 8192, the most that a kernel can have (NR_CPUS); what is not there is dropped
_IOPRIO_WHO_PROCESS = 1


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr` in its first form, 48 bytes: all else zero is SCHED_OTHER, nice 0, in children too."""

    _fields_ = [("size", ctypes.c_uint32), ("rest", ctypes.c_uint32 * 11)]


_libc = ctypes.CDLL(None, use_errno=True)
_syscall, _sched_setaffinity, _personality = _libc["syscall"], _libc["sched_setaffinity"], _libc["personality"]
_syscall.restype = ctypes.c_long
_long = ctypes.c_long
_NR = {name: _long(number) for name, number in calls.SYS.get(os.uname().machine, calls.SYS["x86_64"]).items()}
_default_action = (ctypes.c_char * 64)()  # `struct sigaction` as the kernel has it: SIG_DFL, no flags, empty mask
_ordinary = _SchedAttr(size=ctypes.sizeof(_SchedAttr))


def leave_starter() -> None:
    """Put back what neither our processes nor containers have of whoever started the daemon."""
    for number in range(1, LAST_SIGNAL + 1):
        if number not in _PYTHONS:
            # not signal(2): the C library keeps two signals for itself, but ignored ones are inherited all the same
            _syscall(_NR["rt_sigaction"], number, ctypes.byref(_default_action), None, _long(8))
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    for option, value in _OPERATIONS:
        _set(option, value)
    _syscall(_NR["set_mempolicy"], 0, None, _long(0))
    _personality(ctypes.c_ulong(0))


def leave_keeper() -> None:
    """Put back what a container does not have of its keeper; in the container's control group.

    The kernel cuts the processors down to those of the group's cpuset, now and whenever that changes.
    """
    _sched_setaffinity(0, _long(len(_ALL_PROCESSORS)), _ALL_PROCESSORS)
    _syscall(_NR["sched_setattr"], 0, ctypes.byref(_ordinary), 0)
    _syscall(_NR["ioprio_set"], _IOPRIO_WHO_PROCESS, 0, 0)


def _set(option: int, value: int) -> None:
    try:
        calls.prctl(option, value)
    except OSError:
        return
