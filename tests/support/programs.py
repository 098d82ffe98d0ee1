"""Programs that run beside a test: waited for until ready, ended by pid, their output kept in a file."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


class Program:
    """One program in the background.

    Args:
        command: argv.
        log: file that gets stdout and stderr; `output()` reads it for the report of a failure.
        environment: added to this process's own.
        stderr: where its standard error goes instead, -1 for the log.
    """

    def __init__(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None, stderr: int = -1
    ) -> None:
        self.command = list(command)
        self.log = log
        with open(log, "ab") as file:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file if stderr < 0 else stderr,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._child.pid

    def output(self) -> str:
        """Return everything written so far."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def running(self) -> bool:
        """Tell whether it has not ended."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until `ready`; fail with the program's output if it ends first or the time passes."""
        deadline = time.monotonic() + seconds
        while not ready():
            status = self._child.poll()
            if status is not None:
                raise AssertionError(f"{self.command[0]} ended with {status} before it was ready:\n{self.output()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.command[0]} is not ready after {seconds} s:\n{self.output()}")
            time.sleep(0.01)

    def stop(self, signum: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal, wait, return the exit status; SIGKILL and a failure when it does not end in time."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signum)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError(
                f"{self.command[0]} did not end {seconds} s after signal {signum}:\n{self.output()}"
            ) from None
