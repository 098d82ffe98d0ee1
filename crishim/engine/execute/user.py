"""The image's user and group files, read inside the finished root; what they mean is `engine.users`.

They are opened inside the root, must be regular and at most 1 MiB; what cannot be read is empty.
"""

import os
import stat
from typing import Any

from crishim.engine import users
from crishim.engine.execute.report import StepError
from crishim.linux import calls

_MAX_SIZE = 1 << 20


def resolve(plan: dict[str, Any], root: int) -> users.Identity:
    """Return the identity that a UserPlan asks for.

    Raises:
        StepError: a name is not in the image's files.
    """
    groups = _read(root, users.GROUP) if users.needs_groups(plan) else b""
    try:
        return users.resolve(plan, _read(root, users.PASSWD), groups)
    except users.UnknownUserError as error:
        raise StepError(str(error), error.errno, error.path) from None


def _read(root: int, path: str) -> bytes:
    try:
        fd = calls.openat2(
            root, path, os.O_RDONLY | os.O_NONBLOCK, 0, calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
        )
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            return b""
        return os.read(fd, status.st_size)
    finally:
        os.close(fd)
