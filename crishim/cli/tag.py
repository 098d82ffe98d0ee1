"""`crishim tag IMAGE NAME…`: give an image more names."""

from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Give all the names."""
    command = parser.make("tag", "Give an image more names; a name leaves the image that had it.")
    command.add_argument("image", metavar="IMAGE", help="a name or the id of an image here")
    command.add_argument("names", metavar="NAME", nargs="+", help="a new name; without a tag it is NAME:latest")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        for name in arguments.names:
            client.call(client.images.Tag, pb.TagRequest(image=arguments.image, name=name))
    return 0
