"""`crishim images [NAME]`: the images that are here."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crishim.cli import parser, table

if TYPE_CHECKING:
    from crishim._proto.crishim.v1.images_pb2 import Image

NONE = "<none>"


def run(words: Sequence[str]) -> int:
    """Print them."""
    command = parser.make("images", "Show the images that are here, the newest first: one line for each tag.")
    command.add_argument(
        "filter", metavar="NAME", nargs="?", default="", help="a name, an id, or a pattern of names with * and ?"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    command.add_argument("--digests", action="store_true", help="show the digest that each repository knows it by")
    command.add_argument("--no-trunc", action="store_true", help="print whole ids")
    command.add_argument("--dangling", action="store_true", help="only images without a tag")
    parser.add_format_flag(command)
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        found = client.list_images(arguments.filter, dangling=arguments.dangling)
    if arguments.quiet:
        print("".join(f"{shown_id(image, whole=arguments.no_trunc)}\n" for image in found), end="")
    elif arguments.format == "json":
        print(table.document([as_object(image) for image in found]))
    else:
        print(listing(found, digests=arguments.digests, whole=arguments.no_trunc, now=datetime.now(UTC)))
    return 0


def listing(found: Sequence["Image"], *, digests: bool, whole: bool, now: datetime) -> str:
    """Return the table; an image has a line for each tag, and one for each repository where it has no tag."""
    head = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "CREATED", "SIZE"]
    rows = []
    for image in found:
        for repository, tag, digest in names(image):
            middle = [digest] if digests else []
            age = table.age(image.created, now)
            rows.append([repository, tag, *middle, shown_id(image, whole=whole), age, table.size(image.size)])
    return table.render(head, rows)


def names(image: "Image") -> Iterator[tuple[str, str, str]]:
    """Yield repository, tag and digest for each line of an image."""
    by_repository = dict(name.split("@", 1) for name in image.digests)
    tagged = set()
    for name in image.tags:
        repository, _, tag = name.rpartition(":")
        tagged.add(repository)
        yield repository, tag, by_repository.get(repository, NONE)
    for repository, digest in by_repository.items():
        if repository not in tagged:
            yield repository, NONE, digest
    if not image.tags and not by_repository:
        yield NONE, NONE, NONE


def shown_id(image: "Image", *, whole: bool) -> str:
    """Return an image's id as it is printed."""
    return str(image.id) if whole else table.short(image.id)


def as_object(image: "Image") -> dict[str, Any]:
    """Return an image for `--format json`; sizes are bytes."""
    return {
        "id": image.id,
        "tags": list(image.tags),
        "digests": list(image.digests),
        "manifest": image.manifest,
        "created": image.created,
        "size": image.size,
        "shared": image.shared,
        "platform": image.platform,
        "containers": image.containers,
        "pinned": image.pinned,
        "layers": [
            {
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "size": layer.size,
                "unpacked": layer.unpacked,
                "images": layer.images,
            }
            for layer in image.layers
        ],
    }
