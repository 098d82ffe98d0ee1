"""Every error that crishim raises on purpose: one small tree.

```
CrishimError
├── InvalidArgumentError      the request is wrong: `field` names the place, the message the remedy
├── NotFoundError             the object does not exist
├── AlreadyExistsError        the name or id is taken by something else
├── FailedPreconditionError   right request, wrong moment (container not running, sandbox not ready)
├── ResourceExhaustedError    out of addresses, disk, descriptors
├── PermissionDeniedError     a registry or the kernel refuses, and would refuse again
├── UnauthenticatedError      credentials are missing or wrong
├── UnavailableError          a peer cannot be reached now; trying again may help
│   └── RegistryUnavailableError   the peer is a registry: kubelet knows it by the message's first word
├── DeadlineExceededError     the time that was given has passed
├── AbortedError              given up because something else came in between
├── DataLossError             stored or received bytes are not what their digest says
├── UnimplementedError        the API has it, this version has not; the message says what to use instead
└── InternalError             a fault of ours or of the host
    └── KernelError           a system call failed: names the call, the path or value, and errno
```

The table from this tree to gRPC codes stands in `server/errors.py`; exit statuses in `cli/`. A message is
one sentence for the person who sent the request, names the field, path or value, and never holds a traceback.
"""

import errno
import os


class CrishimError(Exception):
    """Base of all expected errors; `str(error)` is the sentence shown to the user."""


class InvalidArgumentError(CrishimError):
    """The request cannot be right, whatever the state.

    Args:
        field: path of the field in the request, like `config.linux.resources.cpu_period`.
        problem: what is wrong and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class NotFoundError(CrishimError):
    """The named object does not exist."""


class AlreadyExistsError(CrishimError):
    """The name or id belongs to another object."""


class FailedPreconditionError(CrishimError):
    """The object exists but is in a state that does not allow this."""


class ResourceExhaustedError(CrishimError):
    """Something finite ran out: addresses, disk, descriptors, in-flight slots."""


class PermissionDeniedError(CrishimError):
    """Refused by policy; the same request would be refused again."""


class UnauthenticatedError(CrishimError):
    """Credentials are missing or were not accepted."""


class UnavailableError(CrishimError):
    """A peer (registry, keeper) cannot be reached right now."""


class RegistryUnavailableError(UnavailableError):
    """A registry cannot be reached, or does not serve us now.

    kubelet tells this by the first word of the message (cri-api, ErrRegistryUnavailable).
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"RegistryUnavailable: {problem}")


class DeadlineExceededError(CrishimError):
    """The given time has passed."""


class AbortedError(CrishimError):
    """Given up because something else came in between."""


class DataLossError(CrishimError):
    """Bytes do not match their digest or size."""


class UnimplementedError(CrishimError):
    """Part of the API that this version does not have."""


class InternalError(CrishimError):
    """A fault of ours or of the host."""


class KernelError(InternalError):
    """A system call failed.

    Args:
        what: the call and its object, like `mount /proc/sys` or `write memory.max=4096`.
        number: errno.
    """

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
        self.what = what
        self.errno = number
