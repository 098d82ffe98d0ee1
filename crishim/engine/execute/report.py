"""How a child that sets itself up tells its keeper what happened: the ids it found, and the step that failed.

A child that shares the keeper's memory (`linux.vfork`) writes it down. A copy of the keeper sends packets; its end of
the socket is close-on-exec, so a successful execve(2) closes it, and the keeper reads EOF. A failed step's name, errno
and path or value become the CRI error's sentence. Nothing here formats a traceback: after the root has changed, a
late import would load the image's modules as root.
"""

import _socket
import json
import os
from typing import Any


class StepError(Exception):
    """A step failed in a way that errno does not tell.

    Args:
        message: what is wrong.
        number: errno, or 0.
        path: the path or value concerned.
    """

    def __init__(self, message: str, number: int = 0, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.number = number
        self.path = path


class Report:
    """What a child tells of itself, where it shares its keeper's memory; `step` is kept up to date by the executor.

    Args:
        sock: through which a terminal's master goes to the keeper; None where there is no terminal.
    """

    def __init__(self, sock: _socket.socket | None = None) -> None:
        self.step = "start"
        self.ids: list[Any] | None = None
        self.error: dict[str, Any] | None = None
        self._sock = sock

    def keep(self, fd: int) -> int:
        """Go on at this descriptor number, if one is needed; return the first that may be closed."""
        return fd

    def user(self, uid: int, gid: int, groups: list[int]) -> None:
        """Tell the ids the process will have."""
        self.ids = [uid, gid, groups]

    def terminal(self, master: int) -> None:
        """Hand over the terminal's master."""
        if self._sock is None:
            raise StepError("nobody waits for a terminal")
        rights = master.to_bytes(4, "little")
        self._sock.sendmsg(
            [b'{"terminal":true}'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL
        )

    def fail(self, error: BaseException) -> None:
        """Tell the failed step."""
        self.error = describe(self.step, error)["error"]


class Reporter(Report):
    """The same from a copy of the keeper: every word is a message."""

    def __init__(self, sock: _socket.socket) -> None:
        super().__init__(sock)
        self._sock: _socket.socket = sock

    def keep(self, fd: int) -> int:
        """Move the socket to `fd`; what that was before is closed."""
        old = self._sock.detach()
        if old != fd:
            os.dup2(old, fd, inheritable=False)
        self._sock = _socket.socket(fileno=fd)
        return fd + 1

    def moved(self, pid: int) -> None:
        """Tell that another process, a child of the keeper as well, goes on from here."""
        self._send({"pid": pid})

    def user(self, uid: int, gid: int, groups: list[int]) -> None:
        """Tell the ids the process will have; formatted by hand, since the JSON encoder costs many page copies."""
        members = ",".join([str(group) for group in groups])
        self._sock.send(f'{{"user":[{uid},{gid},[{members}]]}}'.encode(), _socket.MSG_NOSIGNAL)

    def fail(self, error: BaseException) -> None:
        """Send the failed step."""
        self._send(describe(self.step, error))

    def _send(self, message: dict[str, Any]) -> None:
        self._sock.send(json.dumps(message).encode(), _socket.MSG_NOSIGNAL)


def describe(step: str, error: BaseException) -> dict[str, Any]:
    """Return the message of a failure: step, errno, path and sentence."""
    if isinstance(error, StepError):
        return {"error": {"step": step, "errno": error.number, "path": error.path, "message": error.message}}
    if isinstance(error, OSError):
        number = error.errno or 0
        what = error.strerror or ""
        # calls.py puts "call object" where Python puts the error's own text
        text = what if what != os.strerror(number) else f"{error.filename or step}"
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        return {
            "error": {"step": step, "errno": number, "path": path, "message": f"{text}: {os.strerror(number).lower()}"}
        }
    return {"error": {"step": step, "errno": 0, "path": "", "message": f"{type(error).__name__}: {error}"}}
