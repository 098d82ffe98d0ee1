"""`crishim stats [NAME…]`: what containers use now."""

import time
from collections.abc import Sequence
from typing import Any

from crishim.cli import parser, table

SAMPLE = 0.6
"""Seconds between the two looks that give a rate; the daemon makes none of less than half a second."""


def run(words: Sequence[str]) -> int:
    """Print it."""
    command = parser.make("stats", "Show what running containers use: CPU in percent of a processor, memory, disk.")
    command.add_argument("names", metavar="NAME", nargs="*", help="of a container or pod, or an id")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim.cli import pods
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        known = {row.container.id: row for row in pods.chosen(pods.rows(client), arguments.names)}
        list(pods.stats(client))
        time.sleep(SAMPLE)
        found = [inner for pod in pods.stats(client) for inner in pod.linux.containers]
    shown = [(known[one.attributes.id], one) for one in found if one.attributes.id in known]
    if arguments.format == "json":
        print(table.document([as_object(row, usage) for row, usage in shown]))
        return 0
    head = ["CONTAINER", "NAME", "POD", "CPU%", "MEMORY", "SWAP", "WRITTEN", "FILES"]
    rows = [
        [
            row.container.id[: pods.SHORT],
            row.name,
            row.place,
            pods.percent(pods.maybe(usage.cpu, "usage_nano_cores")),
            table.size(usage.memory.working_set_bytes.value),
            table.size(usage.swap.swap_usage_bytes.value),
            table.size(usage.writable_layer.used_bytes.value),
            str(usage.writable_layer.inodes_used.value),
        ]
        for row, usage in shown
    ]
    print(table.render(head, rows))
    return 0


def as_object(row: Any, usage: Any) -> dict[str, Any]:
    """Return a container's use for `--format json`; None is not known."""
    cores = usage.cpu.usage_nano_cores.value / 1e9 if usage.cpu.HasField("usage_nano_cores") else None
    return {
        "id": row.container.id,
        "name": row.name,
        "pod": row.pod.metadata.name,
        "namespace": row.pod.metadata.namespace,
        "cpu_cores": cores,
        "cpu_seconds": usage.cpu.usage_core_nano_seconds.value / 1e9,
        "memory_working_set": usage.memory.working_set_bytes.value,
        "memory_usage": usage.memory.usage_bytes.value,
        "swap": usage.swap.swap_usage_bytes.value,
        "written": usage.writable_layer.used_bytes.value,
        "files": usage.writable_layer.inodes_used.value,
    }
