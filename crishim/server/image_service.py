"""ImageService: each RPC converts, calls `images.model.ImagesApi`, converts back."""

import os
from collections.abc import Iterator

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.images.model import ImagesApi
from crishim.pods.admission import handlers
from crishim.pods.api import RuntimeApi
from crishim.problems import Problems
from crishim.server.convert import image
from crishim.server.convert.rows import Rows
from crishim.server.convert.stats import filesystem
from crishim.server.methods import Sender
from crishim.server.parts import stream


class ImageService:
    """The servicer; method names are the RPCs' in snake case (`methods.py`)."""

    def __init__(self, api: ImagesApi, runtime: RuntimeApi) -> None:
        self._api = api
        self._runtime = runtime
        self._images = Rows(image.row)

    async def list_images(self, request: pb.ListImagesRequest) -> bytes:
        """A filter names one image; kubelet's garbage collection lists all."""
        return b"".join(self._rows(request.filter))

    async def stream_images(self, request: pb.StreamImagesRequest, send: Sender) -> None:
        """ListImages in parts."""
        await stream(self._rows(request.filter), send)

    def _rows(self, wanted: pb.ImageFilter) -> Iterator[bytes]:
        name = wanted.image.image
        return self._images.rows(self._api.list(name), whole=not name)

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """An absent image is an answer without image, not an error."""
        found = self._api.find(image.reference(request))
        if found is None:
            return pb.ImageStatusResponse()
        info = self._api.info(found.id) if request.verbose else {}
        return pb.ImageStatusResponse(image=image.row(found), info=info)

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """The reference in the answer is the image's id, as CreateContainer takes it; all handlers share the images."""
        wanted = image.reference(request)
        problems = Problems()
        handlers.judge(problems, "image.runtime_handler", request.image.runtime_handler, self._runtime.handlers())
        problems.check()
        return pb.PullImageResponse(image_ref=await self._api.pull(wanted, image.credentials(request)))

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """An absent image succeeds; any one of its names removes them all."""
        await self._api.remove(image.reference(request))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, _request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """One file system has one name: kubelet takes different mount points for different file systems."""
        images, written = self._api.fs_usage(), self._runtime.written()
        usage = image.fs_usage(images)
        apart = os.stat(images.mountpoint).st_dev != os.stat(written.mountpoint).st_dev
        containers = filesystem(written) if apart else usage
        return pb.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[containers])
