"""`crishim rmi IMAGE…`: take names away, and images with their last name."""

import sys
from collections.abc import Sequence

from crishim.cli import parser
from crishim.errors import CrishimError
from crishim.words import shown


def run(words: Sequence[str]) -> int:
    """Remove what can be removed; the status is 1 if something could not."""
    command = parser.make("rmi", "Take names of images away, and the images with their last name.")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or an id for all names of an image")
    command.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="also by an id that has several names, and although containers use it; it then goes with the last of them",
    )
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli.client import Client

    status = 0
    with Client(config.socket_path) as client:
        for image in arguments.images:
            try:
                done = client.call(client.images.Remove, pb.RemoveRequest(image=image, force=arguments.force))
            except CrishimError as error:
                print(f"crishim: {shown(str(error))}", file=sys.stderr)
                status = 1
                continue
            for name in done.untagged:
                print(f"untagged: {name}")
            if done.deleted:
                print(f"deleted: {done.deleted}", flush=True)
    return status
