"""`crishim load`: take in the images of an archive; prints their names, and the ids of those without."""

from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Load images."""
    command = parser.make(
        "load",
        "Take in all images of an archive (docker-archive or OCI layout, plain or packed), and print their names.",
    )
    command.add_argument("-i", "--input", metavar="FILE", default="", help="the archive, instead of standard input")
    command.add_argument("--name", default="", help="name for the image, if the archive gives it none")
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli import progress, streams
    from crishim.cli.client import Client

    first = pb.LoadRequest(options=pb.LoadOptions(name=arguments.name))
    upload = streams.Upload(arguments.input, first, lambda data: pb.LoadRequest(data=data))
    with upload.faults(), Client(config.socket_path) as client, progress.display(quiet=arguments.quiet) as display:
        result = progress.follow(client.stream(client.images.Load, upload.messages()), display)
    for image in result.images:
        for name in image.names or [image.id]:
            print(name)
    return 0
