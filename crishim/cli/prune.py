"""`crishim prune`: remove images that nothing uses."""

from collections.abc import Sequence

from crishim.cli import parser, table


def run(words: Sequence[str]) -> int:
    """Remove them and tell what was freed."""
    command = parser.make("prune", "Remove images that have no tag and that no container uses.")
    command.add_argument("-a", "--all", action="store_true", help="also images with a tag that no container uses")
    command.add_argument("-n", "--dry-run", action="store_true", help="only tell what would go")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        request = pb.PruneRequest(all=arguments.all, dry_run=arguments.dry_run)
        done = client.call(client.images.Prune, request)
    if arguments.format == "json":
        images = [{"id": image.id, "names": list(image.names)} for image in done.images]
        print(table.document({"images": images, "freed": done.freed, "dry_run": arguments.dry_run}))
        return 0
    word = "would delete" if arguments.dry_run else "deleted"
    for image in done.images:
        names = f" ({', '.join(image.names)})" if image.names else ""
        print(f"{word}: {image.id}{names}")
    print(f"{'would free' if arguments.dry_run else 'freed'}: {table.size(done.freed)}")
    return 0
