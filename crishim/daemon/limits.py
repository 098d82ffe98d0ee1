"""What the daemon asks of the kernel for its own process: descriptors enough, and to be the last one killed.

Spawner and keepers inherit both; containers get their own values before exec (engine). Where the host does not
allow a value, the one in force stays, and the caller reports it.
"""

import os
import resource

from crishim.errors import KernelError

OOM_SCORE_ADJ = -999
"""Killed after everything else; -1000 would make the kernel never free our memory (proc(5), oom_score_adj)."""

_OOM_FILE = "/proc/self/oom_score_adj"


def raise_descriptors() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def protect_from_oom() -> int:
    """Set our oom_score_adj to -999 where that is allowed; return what it is now."""
    with open(_OOM_FILE, encoding="ascii") as file:
        current = int(file.read())
    if current <= OOM_SCORE_ADJ:
        return current
    try:
        with open(_OOM_FILE, "w", encoding="ascii") as file:
            file.write(str(OOM_SCORE_ADJ))
    except PermissionError:
        return current
    except OSError as error:
        raise KernelError(f"write {_OOM_FILE}={OOM_SCORE_ADJ}", error.errno or 0) from None
    return OOM_SCORE_ADJ


def set_umask() -> None:
    """Use the umask that every mode in this code assumes, whatever the caller's was."""
    os.umask(0o022)
