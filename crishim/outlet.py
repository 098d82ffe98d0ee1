"""Writing where nobody may read: to a standard error or log file that never makes the writer wait.

Whoever starts a daemon may hand it a pipe and then read nothing more; a write(2) to a full one waits for ever. The
flag against that, O_NONBLOCK, belongs to the open file description (open(2)), which a standard error shares with
others, so it is set on one of our own: the same pipe, terminal or file opened again by /proc/self/fd (proc_pid_fd(5)).
A socket cannot be opened again, and has a flag for each call instead. A regular file takes a line at once.

Light enough for the spawner and keepers. Out of scope: what is done with what was not taken.
"""

import _socket
import os
import select
import stat

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SAFE = 4096  # PIPE_BUF: what a pipe that poll(2) calls writable takes at once (pipe(7))


class Outlet:
    """Something to write to without waiting; owns its descriptor.

    Args:
        descriptor: stays the caller's; whatever it is now goes on to be written to.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket: _socket.socket | None = None
        self._polls = False
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            self._fd = os.dup(descriptor)
            self._socket = _socket.socket(fileno=self._fd)
            return
        try:
            self._fd = os.open(f"/proc/self/fd/{descriptor}", _FLAGS)
        except OSError:  # not ours to open, or there is no /proc
            self._fd = os.dup(descriptor)
            self._polls = True

    def write(self, data: bytes) -> int:
        """Return how many bytes were taken; 0 while there is no room. Raises OSError if nobody will ever read."""
        try:
            if self._socket is not None:
                return self._socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            if self._polls:
                return os.write(self._fd, data[:_SAFE]) if self.wait(0) else 0
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def wait(self, seconds: float) -> bool:
        """Wait until there may be room again; tell whether there is."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(int(seconds * 1000)))

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)


def complain(text: str) -> None:
    """Write a line to standard error, if it takes it now; for processes that must go on whatever becomes of it."""
    try:
        outlet = Outlet(2)
    except OSError:
        return
    try:
        outlet.write(text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return
    finally:
        outlet.close()
