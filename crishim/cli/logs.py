"""`crishim logs NAME`: what a container has written, from its CRI log on this machine; the daemon only tells where."""

import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from crishim.cli import parser
from crishim.clock import moment
from crishim.errors import FailedPreconditionError, InvalidArgumentError

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
PAUSE = 0.2
"""Seconds between two looks at a file that has ended."""


def run(words: Sequence[str]) -> int:
    """Print it; each stream of the container to our own."""
    command = parser.make("logs", "Print what a container has written, each stream to our own.")
    command.add_argument("name", metavar="NAME", help="of a container, of a pod with one, POD/CONTAINER, or an id")
    command.add_argument("-f", "--follow", action="store_true", help="go on until the container ends")
    command.add_argument("--tail", type=int, default=-1, metavar="COUNT", help="only the last lines")
    command.add_argument("--since", default="", metavar="TIME", help="not older than 90s, 5m, 2h or an RFC 3339 time")
    command.add_argument("-t", "--timestamps", action="store_true", help="put its time before each line")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    since = parse_since(arguments.since, datetime.now(UTC))
    config = parser.config_of(arguments)
    from crishim._proto.runtime.v1 import api_pb2 as pb
    from crishim.cli import pods
    from crishim.cli.client import Client
    from crishim.cli.logfile import LogFile

    with Client(config.socket_path) as client:
        container = pods.one(client, arguments.name).container.id
        request = pb.ContainerStatusRequest(container_id=container)

        def status() -> pb.ContainerStatus:
            found: pb.ContainerStatus = client.call(client.runtime.ContainerStatus, request).status
            return found

        first = status()
        if not first.log_path:
            raise FailedPreconditionError(f"container {container} has no log: its pod has no log directory")
        if first.state == pb.CONTAINER_CREATED and not arguments.follow:
            return 0
        with LogFile(first.log_path) as file:
            file.seek_tail(arguments.tail)
            while True:
                ended = not arguments.follow or status().state == pb.CONTAINER_EXITED
                for record in file.records():
                    if since is None or record.time >= since:
                        record.write(sys.stdout if record.stream == b"stdout" else sys.stderr, arguments.timestamps)
                sys.stdout.flush()
                if ended:
                    return 0
                time.sleep(PAUSE)


def parse_since(text: str, now: datetime) -> datetime | None:
    """Return the time that `--since` means; None without one.

    Raises:
        InvalidArgumentError: it is neither a duration nor a time.
    """
    if not text:
        return None
    match = _DURATION.fullmatch(text)
    if match:
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return now - timedelta(hours=hours, minutes=minutes, seconds=seconds)
    found = moment(text)
    if found is None:
        raise InvalidArgumentError("--since", f"{text!r} is neither a duration like 1h30m nor an RFC 3339 time")
    return found
