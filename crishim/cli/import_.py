"""`crishim import [NAME]`: make an image of one layer from the tarball of a root file system; prints its id."""

from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Import a root file system."""
    command = parser.make(
        "import",
        "Make an image of one layer from the tarball of a root file system (plain, gzip, zstd, xz or bzip2), and print"
        " its id.",
    )
    command.add_argument("name", metavar="NAME", nargs="?", default="", help="name for the image; else it has none")
    command.add_argument("-i", "--input", metavar="FILE", default="", help="the tarball, instead of standard input")
    command.add_argument(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="a Dockerfile instruction for its config, like 'CMD [\"/bin/sh\"]': CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,"
        " STOPSIGNAL, USER, VOLUME or WORKDIR. May be repeated.",
    )
    command.add_argument("-m", "--message", default="", help="a comment for its history")
    command.add_argument("--platform", default="", help="like linux/arm64 (default: this machine's)")
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli import progress, streams
    from crishim.cli.client import Client

    options = pb.ImportOptions(
        name=arguments.name, changes=arguments.change, message=arguments.message, platform=arguments.platform
    )
    upload = streams.Upload(
        arguments.input, pb.ImportRequest(options=options), lambda data: pb.ImportRequest(data=data)
    )
    with upload.faults(), Client(config.socket_path) as client, progress.display(quiet=arguments.quiet) as display:
        result = progress.follow(client.stream(client.images.Import, upload.messages()), display)
    print(result.id)
    return 0
