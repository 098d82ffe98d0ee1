"""crishim.v1.Images: what the command line asks of images beyond the CRI. Each RPC converts, calls, converts back.

Streams send progress as it comes and exactly one result at their end; a caller who leaves cancels the work.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.images.model import Credentials, Details, ImagesManager
from crishim.images.progress import Item
from crishim.server.convert.image import has_any
from crishim.server.methods import Send

M = TypeVar("M", bound=Message)


class ImagesV1:
    """The servicer; method names are the RPCs' in snake case (`methods.py`)."""

    def __init__(self, api: ImagesManager) -> None:
        self._api = api

    async def pull(self, request: pb.PullRequest, send: Send) -> None:
        """Progress, then the pulled image."""

        async def report(items: Sequence[Item]) -> None:
            await send(pb.PullResponse(progress=progress(items)))

        done = await self._api.pull_watched(named(request.image), credentials(request.credentials), report)
        result = pb.PullResult(id=done.id, name=done.name, digest=done.digest, cached=done.cached)
        await send(pb.PullResponse(result=result))

    async def push(self, request: pb.PushRequest, send: Send) -> None:
        """Progress, then the pushed manifest."""

        async def report(items: Sequence[Item]) -> None:
            await send(pb.PushResponse(progress=progress(items)))

        given = credentials(request.credentials)
        done = await self._api.push(named(request.image), request.destination, given, report)
        await send(pb.PushResponse(result=pb.PushResult(name=done.name, digest=done.digest, size=done.size)))

    async def tag(self, request: pb.TagRequest) -> pb.TagResponse:
        """The name leaves the image that had it."""
        image_id, name = await self._api.tag(named(request.image), request.name)
        return pb.TagResponse(id=image_id, name=name)

    async def remove(self, request: pb.RemoveRequest) -> pb.RemoveResponse:
        """Unlike the CRI's RemoveImage: an absent image is an error, and a name alone goes where there are more."""
        removed = self._api.untag(named(request.image), force=request.force)
        return pb.RemoveResponse(untagged=removed.names, deleted=removed.id)

    async def list(self, request: pb.ListRequest) -> pb.ListResponse:
        """The newest first."""
        found = self._api.details(request.filter, dangling=request.dangling)
        return pb.ListResponse(images=[row(one) for one in found])

    async def prune(self, request: pb.PruneRequest) -> pb.PruneResponse:
        """What containers use stays."""
        done = self._api.prune(unused=request.all, dry_run=request.dry_run)
        images = [pb.PrunedImage(id=one.id, names=one.names) for one in done.images]
        return pb.PruneResponse(images=images, freed=done.freed)


def named(text: str, field: str = "image") -> str:
    """Return the image's name or id; InvalidArgumentError if it is empty."""
    if not text:
        raise InvalidArgumentError(field, "is missing: name an image like docker.io/library/busybox:latest")
    return text


def credentials(given: pb.Credentials) -> Credentials | None:
    """Return credentials for `images/`; None if none is given."""
    result = Credentials(
        username=given.username,
        password=given.password,
        auth=given.auth,
        server_address=given.server_address,
        identity_token=given.identity_token,
        registry_token=given.registry_token,
    )
    return result if has_any(result) else None


def progress(items: Sequence[Item]) -> pb.Progress:
    """Return the items that changed."""
    return pb.Progress(
        items=[
            pb.Item(id=i.id, kind=i.kind, state=pb.State.ValueType(i.state.value), current=i.current, total=i.total)
            for i in items
        ]
    )


def row(one: Details) -> pb.Image:
    """Return an image as List shows it."""
    image = one.image
    return pb.Image(
        id=image.id,
        tags=image.repo_tags,
        digests=image.repo_digests,
        manifest=one.manifest,
        created=image.created,
        size=image.size,
        shared=one.shared,
        platform=one.platform,
        containers=one.containers,
        pinned=image.pinned,
        layers=[
            pb.Layer(
                digest=use.layer.digest,
                diff_id=use.layer.diff_id,
                size=use.layer.size,
                unpacked=use.unpacked,
                images=use.images,
            )
            for use in one.layers
        ],
    )
