"""How a forked child of spawner and unpacker ends: always, and without running what belongs to its parent."""

import os
from collections.abc import Callable
from typing import NoReturn

from crishim.outlet import complain


def end_after(work: Callable[[], None], what: str) -> NoReturn:
    """Do a child's work and end the process, whatever happens."""
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001  the last place before the process ends
        complain(f"crishim {what} {os.getpid()}: {type(error).__name__}: {error}")
    finally:
        os._exit(status)
