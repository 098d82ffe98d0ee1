"""Who unpacks a layer's blob: the face of the unpacker's child, and one that starts a program for it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from crishim.images.threads import in_thread

_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Extractor(Protocol):
    """Runs `crishim.unpack.extract.run` in a process of its own."""

    async def extract(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Extract and return the child's report.

        A child that ends without a report, or cannot be started, is an error: raised, or reported as
        `{"error": sentence, "kind": "fault", "errno": 0}`. A cancelled call may leave the child running until the pipe
        of totals ends, which the caller closes.

        Args:
            fds: the blob, the pipe that says how much of it is there, the directory; they stay the caller's.
            options: see `crishim.unpack.extract.run`.
        """


class ProgramExtractor:
    """Starts an interpreter for each layer: for tools and tests, where no spawner runs."""

    async def extract(self, fds: tuple[int, int, int], options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Extract (see `Extractor`)."""
        report_fd, child_fd = os.pipe2(os.O_CLOEXEC)
        words = [*(str(fd) for fd in (*fds, child_fd)), json.dumps(dict(options))]
        try:
            child = subprocess.Popen(  # noqa: ASYNC220  starting is quick; waiting is done in a thread
                [sys.executable, "-m", "crishim.unpack.extract", *words],
                pass_fds=(*fds, child_fd),
                env={**os.environ, "PYTHONPATH": _PACKAGES},
            )
        except BaseException:
            os.close(report_fd)
            raise
        finally:
            os.close(child_fd)
        return await in_thread("extract", lambda: _report(report_fd, child))


def _report(report_fd: int, child: "subprocess.Popen[bytes]") -> Mapping[str, Any]:
    with open(report_fd, "rb") as file:
        data = file.read()
    status = child.wait()
    try:
        report: Mapping[str, Any] = json.loads(data)
    except ValueError:
        report = {"error": f"the extracting child ended with status {status}", "kind": "fault", "errno": 0}
    return report
