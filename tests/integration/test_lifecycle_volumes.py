"""Volumes that an image asks for (its config's `Volumes`): a place to write of the container's own, gone with it."""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.busybox import base_entries
from tests.support.cri import attempt
from tests.support.layout import Entry, directory, hardlink, symlink
from tests.support.world import World

STAY = "sleep 600"
INSIDE = "becomes becomes/dir deep deep/er deep/er/file deep/er/twin hidden hidden/new kept link pipe twin"
TREE = [".", *(f"./{name}" for name in INSIDE.split(" "))]


async def _image(world: World, paths: Sequence[str], entries: Sequence[Entry] = ()) -> str:
    return await world.make_image("volumes", entries, {"Volumes": {path: {} for path in paths}})


def _own(world: World, container: str) -> str:
    return f"{world.instance.root}/containers/{container}"


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_volume_is_made_and_can_be_written_also_on_a_read_only_root(world: World, readonly: bool) -> None:
    image = await _image(world, ["/absent/deep", "/there"], [directory("there", 0o1770, 7, 8)])
    script = (
        "stat -c '%a %u %g' /absent/deep /there; echo one >/absent/deep/f && echo two >/there/f;"
        "cat /absent/deep/f /there/f; touch /outside 2>/dev/null && echo outside;"
        "grep -c -E '^[^ ]+ (/absent/deep|/there) [^ ]+ rw,nosuid,nodev' /proc/mounts"
    )
    outcome = await world.once(script, image=image, security={"readonly_rootfs": readonly})
    outside = [] if readonly else ["outside"]
    assert outcome.stdout.split() == ["755", "0", "0", "1770", "7", "8", "one", "two", *outside, "2"]
    assert len(outcome.status.mounts) == 0


async def test_what_the_image_has_there_is_in_the_volume(world: World) -> None:
    lower = [
        directory("data"),
        Entry("data/kept", b"kept", 0o640, uid=3, gid=4),
        Entry("data/gone", b"gone"),
        directory("data/hidden"),
        Entry("data/hidden/old", b"old"),
        directory("data/deep", 0o711, 5, 6),
        directory("data/deep/er"),
        Entry("data/deep/er/file", b"deep"),
        Entry("data/becomes", b"a file"),
    ]
    upper = [
        Entry("data/.wh.gone"),
        directory("data/hidden", 0o700),
        Entry("data/hidden/.wh..wh..opq"),
        Entry("data/hidden/new", b"new"),
        Entry("data/twin", b"twin", 0o4755),
        hardlink("data/deep/er/twin", "data/twin"),
        symlink("data/link", "/etc/passwd"),
        directory("data/becomes"),
        Entry("data/becomes/dir", b""),
        Entry("data/pipe", kind=tarfile.FIFOTYPE, mode=0o600),
    ]
    image = await world.image_of("content", [base_entries(), lower, upper], {"Volumes": {"/data": {}}})
    script = (
        "cd /data; find . | sort; cat kept hidden/new deep/er/file; stat -c '%a %u %g' kept deep hidden twin;"
        "readlink link; stat -c %h twin; test -p pipe && echo pipe; echo more >>kept; cat kept"
    )
    pod = await world.pod()
    wanted = [
        *TREE,
        "keptnewdeep640 3 4",
        "711 5 6",
        "700 0 0",
        "4755 0 0",
        "/etc/passwd",
        "2",
        "pipe",
        "keptmore",
    ]
    for _ in range(2):  # the image and the next container know nothing of what the first one wrote
        outcome = await world.once(script, pod=pod, image=image, security={"readonly_rootfs": True})
        assert outcome.stdout.splitlines() == wanted


async def test_a_volume_belongs_to_one_container_counts_as_written_and_goes_with_it(world: World) -> None:
    image = await _image(world, ["/data"], [directory("data"), Entry("data/file", bytes(300_000))])
    pod = await world.pod()
    one = await world.run(pod, "echo one >/data/file; " + STAY, image=image)
    two = await world.run(pod, STAY, image=image)
    assert await world.cri.output(two, "wc", "-c", "/data/file") == "300000 /data/file\n"
    assert os.listdir(f"{_own(world, two)}/volumes") == ["0"]
    stats = (await world.cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=two))).stats
    assert stats.writable_layer.used_bytes.value >= 300_000
    for container in (one, two):
        await world.cri.remove(container)
        assert not os.path.exists(_own(world, container))


async def test_what_the_request_mounts_wins_and_its_host_path_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    image = await _image(
        world,
        ["/data", "/data/below", "/links/app", "/keep"],
        [directory("data"), Entry("data/image", b"x"), directory("run"), symlink("links", "/run"), directory("keep")],
    )
    mounts = [
        {"host_path": str(tmp_path), "container_path": "/data"},
        {"host_path": str(tmp_path), "container_path": "/keep/sub"},
    ]
    script = "ls /data /keep /keep/sub; echo w >/run/app/f && cat /links/app/f; echo w >/keep/f && cat /keep/f"
    outcome = await world.once(script, image=image, mounts=mounts, security={"readonly_rootfs": True})
    assert outcome.stdout.split() == ["/data:", "mine", "/keep:", "sub", "/keep/sub:", "mine", "w", "w"]
    assert os.listdir(tmp_path) == ["mine"]
    assert [mount.container_path for mount in outcome.status.mounts] == ["/data", "/keep/sub"]


async def test_volumes_where_none_can_be_are_left_out(world: World) -> None:
    """Other runtimes start such images, so they start here; nothing of the host or of the kernel is covered."""
    image = await _image(
        world,
        ["/", "/proc", "/proc/sys", "/sys/fs", "/dev/shm", "//proc", "/../proc", "/file", "/into-proc", "relative", ""],
        [Entry("file", b"file"), symlink("into-proc", "/proc")],
    )
    script = (
        "cat /file; test -d /proc/self && test -d /sys/kernel && test -w /dev/shm && touch /relative/f && echo fine"
    )
    outcome = await world.once(script, image=image, security={"readonly_rootfs": True})
    assert outcome.stdout == "filefine\n"


async def test_a_volume_that_nothing_can_be_called_is_refused(world: World) -> None:
    path = "/" + "n" * 256
    image = await _image(world, [path])
    pod = await world.pod()
    _, error = await attempt(world.cri.create(pod.id, world.config(STAY, image=image), pod.config))
    assert error is not None
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"volume {path[:200]}: " in (error.details() or "")


async def test_an_image_with_too_many_volumes_is_refused_and_nothing_is_left(world: World) -> None:
    image = await _image(world, [f"/v{number}" for number in range(300)])
    pod = await world.pod()
    _, error = await attempt(world.cri.create(pod.id, world.config(STAY, image=image), pod.config))
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "300 volumes" in str(error.details())
    left = [name for name in os.listdir(f"{world.instance.root}/containers") if not name.startswith(".")]
    assert left == []
