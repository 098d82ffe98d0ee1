"""Images and registry credentials, both ways."""

from typing import Protocol

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.images.model import Credentials, FsUsage, Image
from crishim.pods.views import FsStats
from crishim.server.convert.stats import filesystem
from crishim.words import number

MAX_UID = 2**32 - 2


class NamesImage(Protocol):
    """A request with an image spec."""

    @property
    def image(self) -> pb.ImageSpec:
        """The spec."""


def reference(request: NamesImage) -> str:
    """Return the name or id of the image that a request is about.

    Raises:
        InvalidArgumentError: it is empty.
    """
    if not request.image.image:
        raise InvalidArgumentError("image.image", "is missing: name an image like docker.io/library/busybox:latest")
    return request.image.image


def credentials(request: pb.PullImageRequest) -> Credentials | None:
    """Return the credentials of a pull; None if none of them is given."""
    auth = request.auth
    result = Credentials(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    return result if has_any(result) else None


def has_any(given: Credentials) -> bool:
    """Tell whether there is anything in credentials but the server that they are for."""
    return any((given.username, given.password, given.auth, given.identity_token, given.registry_token))


def row(image: Image) -> pb.Image:
    """Return an image as ListImages and ImageStatus show it."""
    uid, username = user_of(image.config.user)
    name = next(iter((*image.repo_tags, *image.repo_digests)), image.id)
    return pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        spec=pb.ImageSpec(image=name, annotations=image.annotations),
        pinned=image.pinned,
    )


def user_of(user: str) -> tuple[int | None, str]:
    """Split the USER of an image into uid or name; the group after `:` has no field.

    `1002` and `1003:1004` give a uid, `www-data` and `www-data:1004` a name, nothing neither.
    """
    name = user.partition(":")[0]
    uid = number(name)
    return (uid, "") if uid is not None and uid <= MAX_UID else (None, name)


def fs_usage(usage: FsUsage) -> pb.FilesystemUsage:
    """Return the usage of the image store."""
    return filesystem(FsStats(usage.timestamp, usage.mountpoint, usage.used_bytes, usage.inodes_used))
