"""Process 1 of a pod whose containers share a PID namespace: a forked reaper; no pause image, no program.

Made when the first container asks for it. It waits for orphans and ends with the keeper; like every process 1 it
takes the whole namespace with it (pid_namespaces(7)).

The pod's containers see it, and one that has CAP_SYS_PTRACE may look into it: through /proc/1/root and /proc/1/fd it
would reach what the reaper has. So it has nothing: an empty read-only root in a mount namespace of its own, no
descriptor, no capability. Only then is its namespace handed out.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps in enums, which cost many page copies
import errno
import os

from crishim.engine.execute import root
from crishim.engine.keeper.children import Child, Children
from crishim.linux import calls


def start(children: Children, place: str) -> Child:
    """Fork the reaper into a new PID namespace; `place` is an empty directory, on which its root is attached.

    Raises:
        OSError: it could not be made, or not be confined.
    """
    ready, confined = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = calls.clone3(calls.CLONE_NEWPID | calls.CLONE_NEWNS)
        if pid == 0:
            _reap_forever(place, confined)
    except OSError:
        os.close(ready)
        raise
    finally:
        os.close(confined)
    child = children.add(pid, pidfd, lambda _status: None)
    answer = os.read(ready, 1)
    os.close(ready)
    if not answer:
        raise OSError(errno.EIO, "the pod's process 1 could not be confined")
    return child


def _reap_forever(place: str, confined: int) -> None:
    try:
        calls.set_name("crishim-reaper")
        calls.prctl(calls.PR_SET_PDEATHSIG, _signal.SIGKILL)
        _signal.set_wakeup_fd(-1)
        for number in range(1, _signal.NSIG):
            if number not in {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD}:
                try:
                    _signal.signal(number, _signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # children are reaped by the kernel (wait(2), NOTES)
        _enter_nothing(place)
        calls.capset(0, 0, 0)
        os.write(confined, b"1")
        calls.close_from(0)
        while True:
            _signal.pause()
    finally:
        os._exit(1)


def _enter_nothing(place: str) -> None:
    """Let the host's mounts go for an empty file system that nothing can be written to."""
    calls.mount("", "/", "", calls.MS_REC | calls.MS_PRIVATE)
    context = calls.fsopen("tmpfs")
    calls.fsconfig(context, "size", "0")
    calls.fscreate(context, "the reaper's root")
    top = calls.fsmount(context, calls.MOUNT_ATTR_RDONLY, "the reaper's root")
    root.attach(top, place, attached=False)
    root.pivot(top, readonly=False)
