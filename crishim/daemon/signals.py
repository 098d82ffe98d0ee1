"""The daemon's signals: SIGTERM and SIGINT end it, SIGHUP reloads, SIGUSR1 writes what it is doing to the log.

They are handled between two callbacks of the event loop, never in the middle of one, whatever whoever started the
daemon ignored or blocked.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT)


def settle() -> None:
    """Let all signals through, and be told how programs end: not so where SIGCHLD is ignored (wait(2))."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextlib.contextmanager
def handled(end: Callable[[str], None], reload: Callable[[], None], dump: Callable[[], None]) -> Iterator[None]:
    """Handle the signals within the block; `end` gets the name of the signal that asked for it."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, end, number.name)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR1, dump)
    try:
        yield
    finally:
        for number in (*ENDING, signal.SIGHUP, signal.SIGUSR1):
            loop.remove_signal_handler(number)
