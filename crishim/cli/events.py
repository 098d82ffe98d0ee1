"""`crishim events`: what happens to pods and containers, as it happens, until interrupted."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from crishim.cli import parser, table

KINDS = ("created", "started", "stopped", "deleted")
"""By CRI `ContainerEventType`."""


def run(words: Sequence[str]) -> int:
    """Print events, one a line."""
    command = parser.make("events", "Follow what happens to pods and containers, one line an event, until interrupted.")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.runtime.v1 import api_pb2 as pb
    from crishim.cli.client import Client

    names: dict[str, str] = {}
    with Client(config.socket_path) as client:
        for event in client.stream(client.runtime.GetContainerEvents, pb.GetEventsRequest()):
            shown = as_object(event, names)
            text = json.dumps(shown, ensure_ascii=False) if arguments.format == "json" else line(shown)
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
    return 0


def as_object(event: Any, names: dict[str, str]) -> dict[str, Any]:
    """Return an event for `--format json`; `names` keeps containers' names for their last events."""
    pod = event.pod_sandbox_status
    shown: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.created_at / 1e9, UTC).isoformat(),
        "event": KINDS[event.container_event_type],
        "kind": "pod" if event.container_id == pod.id else "container",
        "id": event.container_id,
        "name": names.get(event.container_id, ""),
        "pod": pod.metadata.name,
        "namespace": pod.metadata.namespace,
    }
    for status in event.containers_statuses:
        names[status.id] = status.metadata.name
        if status.id == event.container_id:
            shown["name"] = status.metadata.name
            if shown["event"] == "stopped":
                shown.update(exit_code=status.exit_code, reason=status.reason)
    if shown["kind"] == "pod":
        shown["name"] = pod.metadata.name
    if shown["event"] == "deleted":
        names.pop(event.container_id, None)
    return shown


def line(shown: dict[str, Any]) -> str:
    """Return an event as a person reads it."""
    end = f" ({shown['reason']}, {shown['exit_code']})" if "exit_code" in shown else ""
    name = "" if shown["kind"] == "pod" else f" {shown['name'] or '?'}"
    place = f"{shown['namespace']}/{shown['pod']}"
    text = f"{shown['time'][:23]} {shown['event']:8} {shown['kind']:9} {shown['id'][:13]} {place}{name}{end}"
    return table.printable(text)
