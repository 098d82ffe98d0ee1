"""crishim.v1.Images, the part on archives: Save streams bytes out, Load and Import take a stream in.

A stream that comes in begins with its options; what follows is data, handed on piece by piece, so that a slow store
slows the caller. A caller who leaves cancels the work.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from crishim._proto.crishim.v1 import images_pb2 as pb
from crishim.errors import InvalidArgumentError
from crishim.images.archive.api import Form, Order
from crishim.images.progress import Item
from crishim.server.images_v1 import ImagesV1, named, progress
from crishim.server.methods import Send

_FORMS = {
    pb.ARCHIVE_FORMAT_UNSPECIFIED: Form.OCI,
    pb.ARCHIVE_FORMAT_OCI: Form.OCI,
    pb.ARCHIVE_FORMAT_DOCKER: Form.DOCKER,
}


class ArchiveService(ImagesV1):
    """The whole servicer of crishim.v1.Images."""

    async def save(self, request: pb.SaveRequest, send: Send) -> None:
        """The archive in pieces; nothing is sent if an image is absent."""
        form = _FORMS.get(request.format)
        if form is None:
            raise InvalidArgumentError("format", f"{request.format} is no format of archives that this version has")
        references = [named(text, f"images[{number}]") for number, text in enumerate(request.images)]
        async with aclosing(self._api.archives.save(references, form)) as pieces:
            async for piece in pieces:
                await send(pb.SaveResponse(data=piece))

    async def load(self, messages: AsyncIterator[pb.LoadRequest], send: Send) -> None:
        """Progress, then what was loaded."""

        async def report(items: Sequence[Item]) -> None:
            await send(pb.LoadResponse(progress=progress(items)))

        options = await _options(messages)
        images = await self._api.archives.load(_data(messages), options.name, report)
        result = pb.LoadResult(images=[pb.LoadedImage(id=image.id, names=image.names) for image in images])
        await send(pb.LoadResponse(result=result))

    async def import_(self, messages: AsyncIterator[pb.ImportRequest], send: Send) -> None:
        """Progress, then the image that was made."""

        async def report(items: Sequence[Item]) -> None:
            await send(pb.ImportResponse(progress=progress(items)))

        options = await _options(messages)
        order = Order(options.name, tuple(options.changes), options.message, options.platform)
        image_id, name = await self._api.archives.import_image(_data(messages), order, report)
        await send(pb.ImportResponse(result=pb.ImportResult(id=image_id, name=name)))


async def _options(messages: AsyncIterator[Any]) -> Any:
    """Return the options that a stream must begin with."""
    async for message in messages:
        if message.WhichOneof("part") == "options":
            return message.options
        break
    raise InvalidArgumentError("options", "must be the first message of the stream")


async def _data(messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Yield the data of the rest of a stream."""
    async for message in messages:
        if message.WhichOneof("part") != "data":
            raise InvalidArgumentError("options", "may be the first message of the stream only")
        yield message.data
