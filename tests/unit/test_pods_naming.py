"""The names of an image in a container's status: chosen at its making, and found for records of older versions."""

import dataclasses
import json
import sqlite3
from pathlib import Path

import pytest

from crishim.images.model import Image
from crishim.pods.naming import image_reference, shown_image
from crishim.pods.views import ContainerFilter
from crishim.request import ContainerConfig, ImageConfig, ImageSpec
from tests.fakes.daemon import app, pod, running
from tests.fakes.images import IMAGE, NAME

ID = "sha256:" + "a" * 64
INDEX, MANIFEST = "sha256:" + "b" * 64, "sha256:" + "c" * 64
MIRRORED = (f"docker.io/library/app@{INDEX}", f"docker.io/library/app@{MANIFEST}", f"quay.io/app@{INDEX}")


@pytest.mark.parametrize(
    ("image", "user", "shown"),
    [("app:1", "", "app:1"), (ID, "app:1", "app:1"), (ID, "", ID), ("app:1", "app:1", "app:1")],
)
def test_the_shown_name_is_the_users(image: str, user: str, shown: str) -> None:
    spec = ImageSpec(image, {"k": "v"}, user, "h", "r")
    assert shown_image(spec) == ImageSpec(shown, {"k": "v"}, user, "h", "r")


@pytest.mark.parametrize(
    ("digests", "image", "user", "reference"),
    [
        ((), "app:1", "", ID),
        (("quay.io/app@" + INDEX,), "app:1", "", "quay.io/app@" + INDEX),
        (MIRRORED, ID, "quay.io/app:1", MIRRORED[2]),
        (MIRRORED, "quay.io/app", "", MIRRORED[2]),
        (MIRRORED, ID, "app", MIRRORED[0]),
        (MIRRORED, ID, f"app@{MANIFEST}", MIRRORED[1]),
        (MIRRORED, ID, f"quay.io/app@{MANIFEST}", MIRRORED[2]),
        (MIRRORED, ID, "", MIRRORED[0]),
        (MIRRORED, ID, "NO NAME", MIRRORED[0]),
        (MIRRORED, "elsewhere.example/app", "", MIRRORED[0]),
    ],
)
def test_the_reference_is_that_of_the_users_name(
    digests: tuple[str, ...], image: str, user: str, reference: str
) -> None:
    found = Image(ID, (), ImageConfig(), 1, repo_digests=digests)
    assert image_reference(found, ImageSpec(image, user_specified_image=user)) == reference


def by_id() -> ContainerConfig:
    return app(image=ImageSpec(IMAGE.id, user_specified_image=NAME))


async def test_a_container_keeps_its_reference(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        daemon.images.images[IMAGE.id] = dataclasses.replace(IMAGE, repo_digests=(f"example.org/app@{INDEX}",))
        pod_id = await daemon.runtime.run_sandbox(pod(), "")
        container_id = await daemon.runtime.create_container(pod_id, by_id(), None)
        daemon.images.images[IMAGE.id] = IMAGE  # the name is gone
        await daemon.restart()
        (view,) = daemon.runtime.containers(ContainerFilter())
        assert view == daemon.runtime.container(container_id)
        assert (view.image.image, view.image_ref, view.image_id) == (NAME, f"example.org/app@{INDEX}", IMAGE.id)


@pytest.mark.parametrize("digests", [(f"example.org/app@{INDEX}",), (), None])
async def test_a_record_of_an_older_version(tmp_path: Path, digests: tuple[str, ...] | None) -> None:
    async with running(tmp_path) as daemon:
        pod_id = await daemon.runtime.run_sandbox(pod(), "")
        container_id = await daemon.runtime.create_container(pod_id, by_id(), None)
        await daemon.stop()
        with sqlite3.connect(daemon.paths.database) as database:
            ((text,),) = database.execute("SELECT document FROM containers").fetchall()
            document = json.loads(text)
            assert document["spec"].pop("image_ref") == IMAGE.id
            database.execute("UPDATE containers SET document = ?", (json.dumps(document).encode(),))
        database.close()
        if digests is None:
            daemon.images.images.clear()
        else:
            daemon.images.images[IMAGE.id] = dataclasses.replace(IMAGE, repo_digests=digests)
        await daemon.start()
        view = daemon.runtime.container(container_id)
        assert (view.image.image, view.image_ref, view.image_id) == (NAME, (digests or (IMAGE.id,))[0], IMAGE.id)
        await daemon.runtime.remove_sandbox(pod_id)
