"""An image store with one image and a list of who holds it."""

import builtins
from collections.abc import Mapping

from crishim.errors import NotFoundError
from crishim.images.model import Credentials, FsUsage, Image
from crishim.request import ImageConfig
from tests.fakes.faults import Faults

NAME = "example.org/app:1"
IMAGE = Image(
    id="sha256:" + "a" * 64,
    layers=(),
    config=ImageConfig(cmd=("/bin/app",), stop_signal="SIGQUIT", labels={"io.kubernetes.pod.name": "evil"}),
    size=1,
    repo_tags=(NAME,),
)


class FakeImages:
    """Implements `images.model.ImagesApi`; `holds` outlives the daemon's objects."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.images = {IMAGE.id: IMAGE}
        self.holds: dict[str, str] = {}

    async def pull(self, reference: str, credentials: Credentials | None) -> str:
        raise NotFoundError(reference)

    def find(self, reference: str) -> Image | None:
        self.faults.step("images.find")
        found = (image for image in self.images.values() if reference in {image.id, *image.repo_tags})
        return next(found, None)

    def list(self, reference: str = "") -> builtins.list[Image]:
        return list(self.images.values())

    async def remove(self, reference: str) -> None:
        self.images.clear()

    def hold(self, image_id: str, owner: str) -> tuple[str, ...]:
        self.faults.step("images.hold")
        self.holds[owner] = image_id
        return ("/layers/1", "/layers/2")

    def release(self, owner: str) -> None:
        self.holds.pop(owner, None)

    def fs_usage(self) -> FsUsage:
        return FsUsage("/", 0, 0, 0)

    def info(self, image_id: str) -> Mapping[str, str]:
        return {}
