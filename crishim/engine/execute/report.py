"""How a child that sets itself up tells its keeper what happened: one packet at the failure, or EOF by exec.

The child's end is close-on-exec: a successful execve(2) closes it, and the keeper reads EOF. Before that the child
sends the ids it found (`user`). A step that fails sends its name, errno and the path or value, which become the
CRI error's sentence. Nothing here formats a traceback: after the root has changed, a late import would load the
image's modules as root.
"""

import _socket
import json
import os
from typing import NoReturn

EXIT_STATUS = 128


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


class Reporter:
    """The child's side; `step` is kept up to date by the executor."""

    def __init__(self, sock: _socket.socket) -> None:
        self.step = "start"
        self._sock = sock

    def move_to(self, fd: int) -> None:
        """Go on at this descriptor number; what it was before is closed."""
        old = self._sock.detach()
        if old != fd:
            os.dup2(old, fd, inheritable=False)
        self._sock = _socket.socket(fileno=fd)

    def moved(self, pid: int) -> None:
        """Tell that another process, a child of the keeper as well, goes on from here."""
        self._send({"pid": pid})

    def user(self, uid: int, gid: int, groups: list[int]) -> None:
        """Tell the ids the process will have; formatted by hand, since the JSON encoder costs many page copies."""
        members = ",".join([str(group) for group in groups])
        self._sock.send(f'{{"user":[{uid},{gid},[{members}]]}}'.encode(), _socket.MSG_NOSIGNAL)

    def terminal(self, master: int) -> None:
        """Hand over the terminal's master."""
        rights = master.to_bytes(4, "little")
        self._sock.sendmsg(
            [b'{"terminal":true}'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL
        )

    def fail(self, error: BaseException) -> NoReturn:
        """Report the failed step and end the process."""
        try:
            self._send(describe(self.step, error))
        finally:
            os._exit(EXIT_STATUS)

    def _send(self, message: dict[str, object]) -> None:
        self._sock.send(json.dumps(message).encode(), _socket.MSG_NOSIGNAL)


def describe(step: str, error: BaseException) -> dict[str, object]:
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
