"""`crishim push IMAGE [DESTINATION]`: send an image to a registry; prints `NAME@DIGEST`."""

import os
from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Push one image."""
    command = parser.make("push", "Send an image to the registry that its name says, and print its name and digest.")
    command.add_argument("image", metavar="IMAGE", help="name of an image here, or its id with a DESTINATION")
    command.add_argument("destination", metavar="DESTINATION", nargs="?", default="", help="another name to push it to")
    parser.add_transfer_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli import credentials, progress
    from crishim.cli.client import Client

    login = credentials.of(arguments.destination or arguments.image, arguments.creds, os.environ)
    request = pb.PushRequest(image=arguments.image, destination=arguments.destination, credentials=login)
    with Client(config.socket_path) as client, progress.display(quiet=arguments.quiet) as display:
        result = progress.follow(client.stream(client.images.Push, request), display)
    name = result.name.partition("@")[0]
    print(f"{name}@{result.digest}")
    return 0
