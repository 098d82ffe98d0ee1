"""What statuses and lists say of an object, field by field: as given, as found, or made by the runtime.

The tables name every field of the CRI's messages, so that a field that a later API brings is noticed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.busybox import base_entries
from tests.support.configs import pod_config
from tests.support.cri import container_message, sandbox_message
from tests.support.instance import Instance
from tests.support.layout import tar
from tests.support.registry import PushedImage
from tests.support.world import Pod, World

STAY = "sleep 600"

ECHOED = {
    "PodSandboxStatus": {"metadata", "labels", "annotations", "runtime_handler", "linux"},
    "PodSandbox": {"metadata", "labels", "annotations", "runtime_handler"},
    "ContainerStatus": {"metadata", "labels", "annotations", "mounts", "image", "resources"},
    "Container": {"metadata", "labels", "annotations", "image", "pod_sandbox_id"},
    "ImageSpec": {"annotations", "user_specified_image", "runtime_handler", "image_ref"},
    "Mount": set(api.Mount.DESCRIPTOR.fields_by_name),
}
"""Fields that are given back as they came; `image.image` alone gives way to the user's name."""

MADE = {
    "PodSandboxStatus": {"id", "state", "created_at", "network"},
    "PodSandbox": {"id", "state", "created_at"},
    "ContainerStatus": {
        "id", "state", "created_at", "started_at", "finished_at", "exit_code", "image_ref", "reason", "message",
        "log_path", "image_id", "user", "stop_signal",
    },
    "Container": {"id", "image_ref", "state", "created_at", "image_id"},
    "ImageSpec": {"image"},
    "Mount": set(),
}  # fmt: skip
"""Fields that the runtime finds or makes."""


def test_the_tables_name_every_field() -> None:
    for name, echoed in ECHOED.items():
        assert echoed | MADE[name] == set(api.DESCRIPTOR.message_types_by_name[name].fields_by_name), name
        assert not echoed & MADE[name]


async def rows(world: World, pod: str, container: str) -> tuple[Any, Any, Any, Any]:
    """Return PodSandboxStatus, PodSandbox, ContainerStatus and Container."""
    runtime = world.cri.runtime
    sandbox = (await runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod))).status
    request = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(id=pod))
    (sandbox_row,) = (await runtime.ListPodSandbox(request)).items
    listing = api.ListContainersRequest(filter=api.ContainerFilter(id=container))
    (container_row,) = (await runtime.ListContainers(listing)).containers
    return sandbox, sandbox_row, await world.cri.status(container), container_row


def image_spec(busybox: PushedImage, **more: Any) -> dict[str, Any]:
    return {"image": busybox.id, "user_specified_image": busybox.reference, **more}


async def test_what_was_given_comes_back(world: World, tmp_path: Path, busybox: PushedImage) -> None:
    os.symlink(tmp_path, tmp_path / "link")
    pod = await world.pod("echo", attempt=2, labels={"l": "1"}, annotations={"a": "2"}, hostname="h")
    given = world.config(
        STAY,
        name="c",
        attempt=3,
        labels={"l": "3"},
        annotations={"a": "4"},
        mounts=[
            {"container_path": "/link", "host_path": f"{tmp_path}/link", "selinux_relabel": True},
            {"container_path": "//odd/", "host_path": f"{tmp_path}//made/./", "readonly": True},
        ],
        resources={"cpu_shares": 300, "memory_limit_in_bytes": 64 << 20, "oom_score_adj": 7},
        stop_signal="SIGNAL_SIGUSR1",
    )
    given["image"] = image_spec(busybox, annotations={"i": "5"}, image_ref="r")
    container = await world.run(pod, STAY, name="other")
    container = await world.cri.run(pod.id, given, pod.config)
    wanted, asked = container_message(given), sandbox_message(pod.config)
    sandbox, sandbox_row, status, row = await rows(world, pod.id, container)
    for found in (sandbox, sandbox_row):
        assert (found.metadata, found.labels, found.annotations) == (asked.metadata, asked.labels, asked.annotations)
        assert found.runtime_handler == ""
    assert sandbox.linux.namespaces.options == asked.linux.security_context.namespace_options
    for found in (status, row):
        assert (found.metadata, found.labels, found.annotations) == (wanted.metadata, wanted.labels, wanted.annotations)
        assert found.image.annotations == {"i": "5"}
        assert (found.image.user_specified_image, found.image.image_ref) == (busybox.reference, "r")
    assert list(status.mounts) == list(wanted.mounts)
    assert status.resources.linux == wanted.linux.resources
    assert (status.stop_signal, row.pod_sandbox_id) == (wanted.stop_signal, pod.id)
    assert status.log_path == pod.log("c")


async def shown(world: World, pod: Pod, image: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (image, image_ref, image_id) of a new container, from its status, the list, and crictl's view of it."""
    config = world.config(STAY)
    config["image"] = image
    container = await world.cri.create(pod.id, config, pod.config)
    _, _, status, row = await rows(world, pod.id, container)
    inspected = world.instance.json("inspect", container)["status"]
    found = [(item.image.image, item.image_ref, item.image_id) for item in (status, row)]
    return [*found, (inspected["image"]["image"], inspected["imageRef"], inspected["imageId"])]


async def test_an_image_is_shown_by_the_users_name_its_digest_and_its_id(world: World, busybox: PushedImage) -> None:
    pod = await world.pod()
    pulled = await world.cri.pull(busybox.reference)
    spec = api.ImageSpec(image=busybox.reference)
    image = (await world.cri.image.ImageStatus(api.ImageStatusRequest(image=spec))).image
    (digest,) = image.repo_digests
    assert digest.startswith(f"{busybox.reference.rpartition(':')[0]}@sha256:")
    assert pulled == image.id == busybox.id
    for given, name in (
        (image_spec(busybox), busybox.reference),  # as kubelet does
        ({"image": busybox.reference}, busybox.reference),
        ({"image": digest}, digest),
        ({"image": pulled}, pulled),
    ):
        assert await shown(world, pod, given) == [(name, digest, pulled)] * 3


async def test_an_image_without_a_registry_has_its_id_as_reference(world: World) -> None:
    name, socket = "local/plain:1", world.instance.socket
    command = [sys.executable, "-m", "crishim", "import", "--socket", socket, "-q", name]
    done = subprocess.run(command, input=tar(base_entries()), capture_output=True, check=True)
    identifier = done.stdout.decode().strip()
    image = (await world.cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=name)))).image
    assert (image.id, list(image.repo_digests)) == (identifier, [])
    assert await shown(world, await world.pod(), {"image": name}) == [(name, identifier, identifier)] * 3


async def test_a_removed_image_keeps_its_names_in_the_containers_status(own_world: World) -> None:
    world = own_world
    pod = await world.pod()
    container = await world.run(pod, STAY)
    before = await world.cri.status(container)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", before.image_id)
    assert re.fullmatch(r"127.0.0.1:\d+/busybox@sha256:[0-9a-f]{64}", before.image_ref)
    await world.cri.image.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=world.image)))
    world.instance.restart()
    await world.reconnect()
    assert await world.cri.status(container) == before


async def test_verbose_information_names_the_resolved_sources(world: World, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    container = await world.run(
        await world.pod(), STAY, mounts=[{"container_path": "/a", "host_path": f"{tmp_path}/link"}]
    )
    document = world.instance.json("inspect", container)
    info = document["info"]
    if isinstance(info, str):
        info = json.loads(info)
    assert info["mounts"][0]["host_path"] == f"{tmp_path}/real"
    assert info["config"]["mounts"][0]["host_path"] == f"{tmp_path}/link"
    status = await world.cri.status(container)
    assert (info["imageRef"], info["imageID"]) == (status.image_ref, status.image_id)


def test_crictl_shows_and_filters_by_the_users_name(instance: Instance, image: str, busybox: PushedImage) -> None:
    sandbox = pod_config("named")
    pod = instance.run_pod(sandbox)
    config = {"metadata": {"name": "c"}, "image": image_spec(busybox), "command": ["sleep", "600"]}
    container = instance.run(pod, config, sandbox)
    assert image in instance.crictl("ps").stdout
    for name in (image, busybox.id):
        assert instance.crictl("ps", "-q", "--image", name).stdout.split() == [container]
    assert image in json.dumps(instance.json("ps")["containers"][0]["image"])
