"""How a forked child of spawner and unpacker ends: always, and without running what belongs to its parent."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def end_after(work: Callable[[], None], what: str) -> NoReturn:
    """Do a child's work and end the process, whatever happens."""
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001  the last place before the process ends
        sys.stderr.write(f"crishim {what} {os.getpid()}: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)
