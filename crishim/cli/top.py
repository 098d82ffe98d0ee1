"""`crishim top`: what pods use, drawn anew like top(1): CPU, memory, network, restarts."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from crishim.cli import parser, table
from crishim.errors import InvalidArgumentError

HOME, BELOW = "\x1b[H", "\x1b[J"
"""To the first line; away with what is below the cursor (console_codes(4))."""
LINE_END = "\x1b[K\n"


def run(words: Sequence[str]) -> int:
    """Draw until interrupted, or so many times."""
    command = parser.make("top", "Show what pods use, those with the most CPU time first, again and again.")
    command.add_argument("-d", "--delay", type=float, default=2.0, metavar="SECONDS", help="between two looks (2)")
    command.add_argument("-n", "--iterations", type=int, default=0, metavar="COUNT", help="end after so many")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    if arguments.delay < 0.6:
        raise InvalidArgumentError("--delay", "is less than 0.6 seconds, in which no rate can be told")
    config = parser.config_of(arguments)
    from crishim.cli import pods
    from crishim.cli.client import Client

    before: dict[str, Any] = {}
    count = 0
    with Client(config.socket_path) as client:
        before = {one.attributes.id: one for one in pods.stats(client)}
        while not arguments.iterations or count < arguments.iterations:
            time.sleep(arguments.delay)
            now = {one.attributes.id: one for one in pods.stats(client)}
            again = pods.restarts(pods.rows(client))
            shown = sorted((use(one, before.get(key), again) for key, one in now.items()), key=_order)
            _print(shown, arguments.format)
            before = now
            count += 1
    return 0


def use(now: Any, before: Any, restarts: Mapping[str, int]) -> dict[str, Any]:
    """Return what a pod uses, of two looks at its stats; rates are None in the first look at a pod."""
    linux, meta = now.linux, now.attributes.metadata
    network = linux.network.default_interface
    found: dict[str, Any] = {
        "id": now.attributes.id,
        "pod": meta.name,
        "namespace": meta.namespace,
        "cpu_percent": None,
        "memory": linux.memory.working_set_bytes.value,
        "received": None,
        "sent": None,
        "processes": linux.process.process_count.value,
        "restarts": restarts.get(now.attributes.id, 0),
    }
    if before is None:
        return found
    old = before.linux
    seconds = (linux.cpu.timestamp - old.cpu.timestamp) / 1e9
    if seconds > 0:
        worked = linux.cpu.usage_core_nano_seconds.value - old.cpu.usage_core_nano_seconds.value
        found["cpu_percent"] = round(max(worked, 0) / 1e7 / seconds, 1)
    seconds = (linux.network.timestamp - old.network.timestamp) / 1e9
    if seconds > 0:
        earlier = old.network.default_interface
        found["received"] = round(max(network.rx_bytes.value - earlier.rx_bytes.value, 0) / seconds)
        found["sent"] = round(max(network.tx_bytes.value - earlier.tx_bytes.value, 0) / seconds)
    return found


def drawn(shown: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of one picture."""
    head = ["POD", "CPU%", "MEMORY", "RX/s", "TX/s", "PROCESSES", "RESTARTS"]
    rows = [
        [
            f"{one['namespace']}/{one['pod']}",
            "-" if one["cpu_percent"] is None else f"{one['cpu_percent']:.1f}",
            table.size(one["memory"]),
            "-" if one["received"] is None else table.size(one["received"]),
            "-" if one["sent"] is None else table.size(one["sent"]),
            str(one["processes"]),
            str(one["restarts"]),
        ]
        for one in shown
    ]
    total = sum(one["cpu_percent"] or 0.0 for one in shown)
    memory = table.size(sum(one["memory"] for one in shown))
    return [f"{len(shown)} pods, {total:.1f}% CPU, {memory} memory", "", *table.render(head, rows).split("\n")]


def _print(shown: Sequence[dict[str, Any]], form: str) -> None:
    if form == "json":
        text = table.document(shown) + "\n"
    elif sys.stdout.isatty():
        height = shutil.get_terminal_size().lines
        text = HOME + "".join(f"{line}{LINE_END}" for line in drawn(shown)[: height - 1]) + BELOW
    else:
        text = "\n".join(drawn(shown)) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def _order(one: dict[str, Any]) -> tuple[float, str, str]:
    return -(one["cpu_percent"] or 0.0), one["namespace"], one["pod"]
