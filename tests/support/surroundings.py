"""What a test run takes from whoever started it: as little as possible, so that tests say the same everywhere.

A run may be started in the background (SIGINT and SIGQUIT ignored), by nohup (SIGHUP), with any umask, by a shell whose
environment names proxies, a locale or a login, on a host that has any file. `settle` makes these alike.
"""

import os
import secrets
import signal
import time
from types import FrameType

from tests.support.ownership import run_id

ABSENT = f"/absent-{run_id()}-{secrets.token_hex(4)}"
"""A path that is on no host."""

_KEPT = {"PATH", "HOME", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED", "CI", "SSL_CERT_FILE", "SSL_CERT_DIR"}
_KEPT_PREFIXES = ("CRISHIM_", "PYTEST_", "COV", "GO")


def settle() -> None:
    """Make this process, and all programs that it starts, independent of who started it."""
    os.umask(0o022)
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    time.tzset()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own, which it gives back
        if signal.getsignal(number) is signal.SIG_IGN:
            # handled, it does as little to this process, and is not passed on to programs (execve(2))
            signal.signal(number, _pass_over)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _pass_over(_number: int, _frame: FrameType | None) -> None:
    """Do what ignoring a signal does."""
