"""Process 1 of a pod whose containers share a PID namespace: a forked reaper; no pause image, no program.

Made when the first container asks for it. It waits for orphans and ends with the keeper; like every process 1 it
takes the whole namespace with it (pid_namespaces(7)).
"""

import os
import signal

from crishim.engine.keeper.children import Child, Children
from crishim.linux import calls


def start(children: Children) -> Child:
    """Fork the reaper into a new PID namespace."""
    pid, pidfd = calls.clone3(calls.CLONE_NEWPID)
    if pid == 0:
        _reap_forever()
    return children.add(pid, pidfd, lambda _status: None)


def _reap_forever() -> None:
    try:
        calls.set_name("crishim-reaper")
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if number not in {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel (wait(2), NOTES)
        os.closerange(0, 4096)
        while True:
            signal.pause()
    finally:
        os._exit(1)
