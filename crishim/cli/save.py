"""`crishim save IMAGE...`: write images to one archive, for `crishim load`, docker, podman and skopeo."""

from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Save images."""
    command = parser.make("save", "Write images to one tar archive; those given by a tag keep it.")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="name, id, or unique start of an id")
    command.add_argument(
        "-o", "--output", metavar="FILE", default="", help="where to, instead of standard output; mode 0600"
    )
    command.add_argument(
        "--format",
        choices=("docker-archive", "oci-archive"),
        default="docker-archive",
        help="docker-archive (the default) is an OCI layout with docker's manifest.json, which all tools load;"
        " oci-archive is the layout alone",
    )
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim._proto.crishim.v1 import images_pb2 as pb
    from crishim.cli import streams
    from crishim.cli.client import Client

    forms = {"docker-archive": pb.ARCHIVE_FORMAT_DOCKER, "oci-archive": pb.ARCHIVE_FORMAT_OCI}
    request = pb.SaveRequest(images=arguments.images, format=forms[arguments.format])
    with Client(config.socket_path) as client:
        streams.write((answer.data for answer in client.stream(client.images.Save, request)), arguments.output)
    return 0
