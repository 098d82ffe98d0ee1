"""One table from crishim's errors to gRPC status codes, and the form in which an error reaches a client.

Out of scope: logging (the interceptors do it, once). Invariant: every class of `crishim.errors` has a row of its own,
and nothing but a `Refusal` made here ever becomes a gRPC status: no traceback. UNKNOWN is for errors that kubelet knows
by their first word, and for nothing else: its client takes the status off an error of this code only, and compares what
is left.
"""

import errno
import secrets

from grpc import StatusCode

from crishim import errors
from crishim.words import shown

CODES: dict[type[errors.CrishimError], StatusCode] = {
    errors.CrishimError: StatusCode.INTERNAL,
    errors.InvalidArgumentError: StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.PermissionDeniedError: StatusCode.PERMISSION_DENIED,
    errors.UnauthenticatedError: StatusCode.UNAUTHENTICATED,
    errors.UnavailableError: StatusCode.UNAVAILABLE,
    errors.RegistryUnavailableError: StatusCode.UNKNOWN,
    errors.DeadlineExceededError: StatusCode.DEADLINE_EXCEEDED,
    errors.AbortedError: StatusCode.ABORTED,
    errors.DataLossError: StatusCode.DATA_LOSS,
    errors.UnimplementedError: StatusCode.UNIMPLEMENTED,
    errors.InternalError: StatusCode.INTERNAL,
    errors.KernelError: StatusCode.INTERNAL,
}

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

MAX_DETAILS = 4000
"""Longest message in bytes on the wire: it travels percent-encoded in a trailer, and peers limit trailers to 8 KiB."""
_MOST_BYTES = 12
"""A character's longest form on the wire: four bytes, three characters each."""


class Refusal(Exception):  # noqa: N818  a status on its way to the client, not a fault
    """The status that a call ends with instead of an answer.

    `error` is its cause; `incident` the id under which the log has the stack of an unexpected one, else "".
    """

    def __init__(self, code: StatusCode, details: str, error: BaseException | None = None, incident: str = "") -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.error = error
        self.incident = incident


def code_of(error: errors.CrishimError) -> StatusCode:
    """Return the status code of an error: the row of its class, or of the nearest base class.

    A step of whatever kind that failed for want of disk space is RESOURCE_EXHAUSTED.
    """
    if getattr(error, "errno", 0) in _FULL:
        return StatusCode.RESOURCE_EXHAUSTED
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def refusal(error: Exception) -> Refusal:
    """Return the status for any exception; an unexpected one is hidden behind an incident number."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, errors.CrishimError):
        return Refusal(code_of(error), printable(str(error)), error)
    incident = secrets.token_hex(4)
    return Refusal(StatusCode.INTERNAL, f"internal error, see the log (id {incident})", error, incident)


def printable(text: str) -> str:
    """Return `text` short enough for a trailer and without what UTF-8 cannot hold (surrogates of odd file names)."""
    clean = shown(text)
    if len(clean) * _MOST_BYTES <= MAX_DETAILS:
        return clean
    size = 0
    for index, character in enumerate(clean):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > MAX_DETAILS:
            return clean[:index] + "…"
    return clean
