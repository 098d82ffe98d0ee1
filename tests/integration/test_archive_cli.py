"""`crishim save`, `load` and `import` against a real daemon: what was loaded runs, a killed load leaves nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import made, pack
from tests.support.busybox import base_entries
from tests.support.instance import Instance
from tests.support.layout import Entry, tar
from tests.support.registry import PushedImage, Registry
from tests.support.waiting import wait_for
from tests.support.world import World


def argv(instance: Instance, *words: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "crishim", words[0], "--socket", instance.socket, *words[1:]]


def run(instance: Instance, *words: str, status: int = 0, data: bytes | None = None) -> str:
    done = subprocess.run(argv(instance, *words), capture_output=True, check=False, timeout=120, input=data)
    assert done.returncode == status, done.stderr
    return (done.stderr if status else done.stdout).decode()


def stored(instance: Instance) -> list[str]:
    """What lies in the directories of blobs, parts and spools."""
    found = []
    for name in ("sha256", "sha512", "parts", "loads"):
        found += [f"{name}/{entry}" for entry in os.listdir(f"{instance.root}/content/{name}")]
    return sorted(found)


def tags(instance: Instance) -> dict[str, list[str]]:
    return {image["id"]: image.get("repoTags", []) for image in instance.json("images", "-o", "json")["images"]}


@pytest.fixture
def bare(shared_instance: Instance) -> Iterator[Instance]:
    """Return the module's instance; images go after the test."""
    yield shared_instance
    for image in tags(shared_instance):
        shared_instance.crictl("rmi", image)


async def test_an_image_goes_through_an_archive_and_runs(
    shared_instance: Instance, busybox: PushedImage, registry: Registry, tmp_path: Path
) -> None:
    instance = shared_instance
    instance.crictl("pull", busybox.reference)
    for form in ("docker-archive", "oci-archive"):
        file = str(tmp_path / form)
        run(instance, "save", "--format", form, "-o", file, busybox.reference)
        instance.crictl("rmi", busybox.reference)
        wait_for(lambda: stored(instance) == [])
        assert run(instance, "load", "-q", "-i", file) == f"{busybox.reference}\n"
        assert tags(instance) == {busybox.id: [busybox.reference]}
    world = World(instance, busybox.reference, registry)
    async with world:
        outcome = await world.once("echo loaded; cat /etc/passwd | head -n 1", image=busybox.reference)
        assert outcome.code == 0
        assert outcome.stdout.startswith("loaded\n")
    instance.crictl("rmi", busybox.reference)


async def test_an_imported_root_file_system_runs(bare: Instance, registry: Registry) -> None:
    root = tar(base_entries())
    identity = run(
        bare, "import", "-q", "-c", "ENV WORDS='from the image'", "-c", "USER 1000", "own/rootfs:1", data=root
    ).strip()
    assert tags(bare) == {identity: ["docker.io/own/rootfs:1"]}
    assert [row["id"] for row in json.loads(run(bare, "images", "--format", "json"))] == [identity]
    world = World(bare, identity, registry)
    async with world:
        outcome = await world.once(["/bin/sh", "-c", "echo $WORDS; id -u"])
        assert (outcome.code, outcome.stdout) == (0, "from the image\n1000\n")


def test_archives_through_pipes(bare: Instance) -> None:
    one, two = made([Entry("one")]), made([Entry("one")], [Entry("two")])
    data = pack(archives.docker_old({one: ["a:1", "b:2"], two: []}))
    assert run(bare, "load", "-q", data=data) == f"docker.io/library/a:1\ndocker.io/library/b:2\n{two.id}\n"
    saving = subprocess.Popen(argv(bare, "save", "a:1", two.id), stdout=subprocess.PIPE)
    packing = subprocess.Popen(["gzip"], stdin=saving.stdout, stdout=subprocess.PIPE)
    assert saving.stdout is not None
    saving.stdout.close()
    with packing:
        loaded = subprocess.run(
            argv(bare, "load", "-q"), stdin=packing.stdout, capture_output=True, check=True, text=True
        )
    assert (saving.wait(), packing.returncode) == (0, 0)
    assert sorted(loaded.stdout.split()) == sorted(["docker.io/library/a:1", two.id])


def test_what_goes_wrong_is_one_line_and_leaves_nothing(bare: Instance, tmp_path: Path) -> None:
    whole = pack(archives.docker_old({made([Entry("x", bytes(3_000_000))]): ["a"]}))
    for words, data, part in (
        (("load", "-q"), b"", "neither index.json nor manifest.json"),
        (("load", "-q"), whole[:1_000_000], "truncated"),
        (("import", "-q"), b"words", "tar"),
        (("import", "-q", "-c", "RUN x"), whole, "options.changes[0]: 'RUN' is not one of CMD"),
        (("load", "-q", "--name", "b"), whole, "options.name: the archive has 0 images without a name"),
        (("save", "absent"), b"", "no image absent is here"),
        (("save", "-o", str(tmp_path / "new"), "absent"), b"", "no image absent is here"),
    ):
        said = run(bare, *words, status=2 if "options." in part else 1, data=data)
        assert said.startswith("crishim: ")
        assert part in said
        assert said.count("\n") == 1
    assert (stored(bare), tags(bare), os.listdir(tmp_path)) == ([], {}, [])


def test_a_reader_that_has_enough(bare: Instance) -> None:
    big = made([Entry("noise", os.urandom(8 << 20))])
    run(bare, "load", "-q", data=pack(archives.docker_old({big: ["big"]})))
    saving = subprocess.Popen(argv(bare, "save", "big"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert saving.stdout is not None
    assert len(saving.stdout.read(1000)) == 1000
    saving.stdout.close()
    assert saving.wait(30) == 1
    assert saving.stderr is not None
    with saving.stderr:
        assert saving.stderr.read() == b""


def _half(instance: Instance, data: bytes, command: str) -> "subprocess.Popen[bytes]":
    """Start a command that has got half of its input and waits for the rest."""
    running = subprocess.Popen(
        argv(instance, command, "-q"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdin is not None
    running.stdin.write(data[: len(data) // 2])
    running.stdin.flush()
    wait_for(lambda: any(os.listdir(entry) for entry in _spools(instance)))
    return running


def _spools(instance: Instance) -> list[str]:
    top = f"{instance.root}/content/loads"
    return [f"{top}/{name}" for name in os.listdir(top)]


BIG = pack(archives.docker_old({made([Entry("first", bytes(3 << 20)), Entry("noise", os.urandom(3 << 20))]): ["big"]}))


@pytest.mark.parametrize("command", ["load", "import"])
def test_a_client_that_is_killed_in_the_middle(bare: Instance, command: str) -> None:
    running = _half(bare, BIG, command)
    running.kill()
    running.communicate()
    wait_for(lambda: stored(bare) == [])
    assert tags(bare) == {}


@pytest.mark.parametrize("command", ["load", "import"])
def test_a_daemon_that_is_killed_in_the_middle(instance: Instance, command: str) -> None:
    running = _half(instance, BIG, command)
    instance.kill()
    _, said = running.communicate()
    assert running.returncode == 1
    assert said.startswith(b"crishim: no daemon answers on ")
    assert said.count(b"\n") == 1
    assert _spools(instance)
    instance.start()
    assert (stored(instance), tags(instance)) == ([], {})
    assert run(instance, "load", "-q", data=BIG) == "docker.io/library/big:latest\n"
