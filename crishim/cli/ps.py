"""`crishim ps [NAME…]`: the containers that run, or all."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crishim.cli import parser, table

if TYPE_CHECKING:
    from crishim.cli.pods import Row


def run(words: Sequence[str]) -> int:
    """Print them."""
    command = parser.make("ps", "Show the containers that run, the newest first.")
    command.add_argument("names", metavar="NAME", nargs="*", help="of a container or pod, or an id")
    command.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    command.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    command.add_argument("--no-trunc", action="store_true", help="print whole ids")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim.cli import pods
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        found = pods.chosen(pods.rows(client), arguments.names)
    found = [row for row in found if arguments.all or row.state == "running"]
    length = None if arguments.no_trunc else pods.SHORT
    if arguments.quiet:
        print("".join(f"{row.container.id[:length]}\n" for row in found), end="")
    elif arguments.format == "json":
        print(table.document([as_object(row) for row in found]))
    else:
        print(listing(found, length, datetime.now(UTC)))
    return 0


def listing(found: Sequence["Row"], length: int | None, now: datetime) -> str:
    """Return the table."""
    head = ["CONTAINER", "NAME", "POD", "IMAGE", "STATE", "ATTEMPT", "CREATED"]
    rows = [
        [
            row.container.id[:length],
            row.name,
            row.place,
            row.container.image.image,
            row.state,
            str(row.container.metadata.attempt),
            table.age(_time(row.container.created_at), now),
        ]
        for row in found
    ]
    return table.render(head, rows)


def as_object(row: "Row") -> dict[str, Any]:
    """Return a container for `--format json`."""
    container, pod = row.container, row.pod
    return {
        "id": container.id,
        "name": row.name,
        "attempt": container.metadata.attempt,
        "state": row.state,
        "image": container.image.image,
        "image_id": container.image_id,
        "created": _time(container.created_at),
        "labels": dict(container.labels),
        "pod": {"id": pod.id, "name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid},
    }


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat()
