"""Run as a program: give this process everything that a program can inherit, then become the one that is named.

`python -m tests.support.burden PROGRAM ARGUMENT…`: each setting differs from the kernel's default; what this kernel or
host does not have is left out.
"""

import ctypes
import os
import resource
import signal
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_LONG = ctypes.c_long
_NUMBERS = {"x86_64": (13, 251, 238), "aarch64": (134, 30, 237)}  # rt_sigaction, ioprio_set, set_mempolicy
_LIMITS = {
    resource.RLIMIT_CORE: 4096,
    resource.RLIMIT_STACK: 7 << 20,
    resource.RLIMIT_NPROC: 4000,
    resource.RLIMIT_SIGPENDING: 400,
}
SLACK = 1_000_000
NICE = 3


def _prctl(option: int, value: int) -> bool:
    return bool(_libc.prctl(option, _LONG(value), _LONG(0), _LONG(0), _LONG(0)) == 0)


def take_on() -> None:
    """Change all there is to be inherited."""
    action, ioprio, mempolicy = _NUMBERS[os.uname().machine]
    ignore = (ctypes.c_uint64 * 8)(1)  # struct sigaction of the kernel's: SIG_IGN, no flags, empty mask
    for number in range(1, 65):  # those that the C library keeps for itself too
        _libc.syscall(_LONG(action), number, ctypes.byref(ignore), None, _LONG(8))
    blocked = ctypes.c_uint64(2**64 - 1)
    _libc.syscall(_LONG(action + 1), 0, ctypes.byref(blocked), None, _LONG(8))  # rt_sigprocmask follows rt_sigaction
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _libc.syscall(_LONG(ioprio), 1, 0, 3 << 13)  # IOPRIO_CLASS_IDLE
    _prctl(29, SLACK)  # PR_SET_TIMERSLACK
    _prctl(41, 1)  # PR_SET_THP_DISABLE
    _prctl(67, 1)  # PR_SET_MEMORY_MERGE
    _libc.personality(_LONG(0x0040000))  # ADDR_NO_RANDOMIZE
    nodes = ctypes.c_ulong(1)
    _libc.syscall(_LONG(mempolicy), 2, ctypes.byref(nodes), _LONG(64))  # MPOL_BIND to node 0
    os.umask(0o077)
    # soft ones alone: no host gives a hard limit back without CAP_SYS_RESOURCE
    for kind, soft in _LIMITS.items():
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
    for n in range(500):
        os.environ[f"BURDEN_{n}"] = "x" * 200
    _libc.prctl(1, _LONG(signal.SIGUSR1))  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    take_on()
    os.execvp(sys.argv[1], sys.argv[1:])
