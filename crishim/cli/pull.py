"""`crishim pull IMAGE…`: get images from their registries; prints each image's id."""

import os
from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Pull one image after the other; the first that fails ends it."""
    command = parser.make("pull", "Get images from their registries, and print their ids.")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="name of an image, like busybox:1.36")
    parser.add_transfer_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli import credentials, progress
    from crishim.cli.client import Client

    logins = [credentials.of(image, arguments.creds, os.environ) for image in arguments.images]
    with Client(config.socket_path) as client:
        for image, login in zip(arguments.images, logins, strict=True):
            with progress.display(quiet=arguments.quiet) as display:
                result = progress.follow(
                    client.stream(client.images.Pull, pb.PullRequest(image=image, credentials=login)), display
                )
            print(result.id, flush=True)
    return 0
