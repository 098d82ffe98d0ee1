"""Under which names a container shows its image: what the user wrote, a digest reference, and the id.

kubelet passes an id as `image` and the user's name beside it, copies the shown name and the digest reference into the
pod's status, and collects images by their id. The digest reference is chosen when the container is made and stays,
whatever happens to the image's names afterwards. Pure.
"""

import dataclasses

from crishim.errors import InvalidArgumentError
from crishim.images.model import Image
from crishim.images.reference import parse
from crishim.request import ImageSpec


def shown_image(spec: ImageSpec) -> ImageSpec:
    """Return the spec with the user's name as its image; all else as it came."""
    if spec.user_specified_image in {"", spec.image}:
        return spec
    return dataclasses.replace(spec, image=spec.user_specified_image)


def image_reference(image: Image, spec: ImageSpec) -> str:
    """Return the digest reference of a container's image, or its id where it has none.

    Of several, the one that the user's name gives, else one of the same repository, else the first.
    """
    digests = image.repo_digests
    if len(digests) < 2:
        return digests[0] if digests else image.id
    try:
        wanted = parse(spec.user_specified_image or spec.image)
    except InvalidArgumentError:
        return digests[0]
    exact = f"{wanted.repository}@{wanted.digest}"
    same = [name for name in digests if name.partition("@")[0] == wanted.repository]
    return exact if exact in same else (*same, *digests)[0]
