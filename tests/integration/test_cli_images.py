"""`crishim pull`, `push`, `images`, `tag`, `rmi` and `prune` against a real daemon and a real registry."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry, Handler
from tests.support import layout
from tests.support.instance import Instance
from tests.support.layout import Entry
from tests.support.registry import PushedImage, Registry
from tests.support.surroundings import ABSENT
from tests.support.waiting import wait_for
from tests.support.world import World

ENVIRONMENT = {**os.environ, "DOCKER_CONFIG": ABSENT}


def crishim(
    instance: Instance, command: str, *words: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-W", "error", "-m", "crishim", command, "--socket", instance.socket, *words]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=120, env={**ENVIRONMENT, **(environment or {})}
    )


def fine(instance: Instance, command: str, *words: str) -> str:
    done = crishim(instance, command, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(instance: Instance) -> list[str]:
    images = json.loads(fine(instance, "images", "--format", "json"))
    return sorted(name for image in images for name in image["tags"])


@pytest.fixture
def bare(shared_instance: Instance) -> Iterator[Instance]:
    """Return the module's instance, without images before and after the test."""
    yield shared_instance
    for image in fine(shared_instance, "images", "-q", "--no-trunc").split():
        fine(shared_instance, "rmi", "--force", image)


def push(registry: Registry, name: str, *contents: bytes) -> str:
    """Put an image with a layer for each content into the registry; return its reference."""
    path = os.path.join(registry.directory, name.replace("/", "-").replace(":", "-"))
    layout.write(path, layout.ImagePlan([[Entry(f"f{n}", data)] for n, data in enumerate(contents)]))
    return registry.push(path, name)


def test_from_pull_to_prune(bare: Instance, busybox: PushedImage, registry: Registry) -> None:
    done = crishim(bare, "pull", busybox.reference)
    assert (done.returncode, done.stdout) == (0, f"{busybox.id}\n")
    assert done.stderr.startswith("layer ")
    assert " done, " in done.stderr
    again = crishim(bare, "pull", busybox.reference)
    assert (again.stdout, again.stderr) == (f"{busybox.id}\n", "")
    table = fine(bare, "images").splitlines()
    assert table[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert table[1].split()[:3] == [f"{registry.host}/busybox", "1", busybox.id[7:19]]
    assert fine(bare, "images", "-q", "--no-trunc") == f"{busybox.id}\n"
    fine(bare, "tag", busybox.reference, "local/copy", f"{registry.host}/team/app:v1")
    assert names(bare) == [f"{registry.host}/busybox:1", f"{registry.host}/team/app:v1", "docker.io/local/copy:latest"]
    assert len(fine(bare, "images", "--digests").splitlines()) == 4
    assert fine(bare, "images", "-q", "local/c*") == f"{busybox.id[7:19]}\n"
    assert fine(bare, "images", "-q", f"{registry.host}/team/app") == f"{busybox.id[7:19]}\n"
    assert fine(bare, "images", "-q", "none/such") == ""
    assert fine(bare, "rmi", "local/copy") == "untagged: docker.io/local/copy:latest\n"
    several = crishim(bare, "rmi", busybox.id)
    assert several.returncode == 1
    assert several.stderr.startswith(f"crishim: image {busybox.id} has 2 names (")
    gone = fine(bare, "rmi", f"{registry.host}/team/app:v1", busybox.reference).splitlines()
    assert gone[0] == f"untagged: {registry.host}/team/app:v1"
    assert sorted(gone[1:3]) == [f"untagged: {registry.host}/busybox:1", gone[2]]
    assert gone[2].startswith(f"untagged: {registry.host}/busybox@sha256:")
    assert gone[3:] == [f"deleted: {busybox.id}"]
    absent = crishim(bare, "rmi", busybox.reference, "NO")
    assert absent.returncode == 1
    assert absent.stderr.splitlines()[0].startswith(f"crishim: no image {busybox.reference} is here")
    assert fine(bare, "prune") == "freed: 0B\n"


def test_prune_takes_what_has_no_tag_and_then_what_nothing_uses(bare: Instance, registry: Registry) -> None:
    first, second = push(registry, "p/one:1", b"1" * 5000), push(registry, "p/two:1", b"2" * 5000)
    fine(bare, "pull", "-q", first, second)
    fine(bare, "tag", second, first)
    dry = fine(bare, "prune", "--dry-run")
    assert dry.startswith("would delete: sha256:")
    done = json.loads(fine(bare, "prune", "--format", "json"))
    assert len(done["images"]) == 1
    assert done["freed"] > 5000
    assert dry.startswith(f"would delete: {done['images'][0]['id']} ")
    assert names(bare) == sorted([first, second])
    assert json.loads(fine(bare, "prune", "-a", "--format", "json"))["images"][0]["names"]
    assert fine(bare, "images", "-q") == ""
    assert os.listdir(f"{bare.root}/content/sha256") == []


async def test_an_image_in_use_keeps_its_last_name(world: World) -> None:
    instance = world.instance
    pod = await world.pod()
    container = await world.run(pod, ["/bin/sleep", "1000"])
    refused = await asyncio.to_thread(crishim, instance, "rmi", world.image)
    assert refused.returncode == 1
    assert f"is used by container {container[:13]}" in refused.stderr
    assert await asyncio.to_thread(fine, instance, "prune", "-a") == "freed: 0B\n"
    shown = json.loads(await asyncio.to_thread(fine, instance, "images", "--format", "json"))
    assert [image["containers"] for image in shown] == [1]
    assert "untagged: " in await asyncio.to_thread(fine, instance, "rmi", "-f", world.image)
    assert await asyncio.to_thread(fine, instance, "images", "-q") == ""
    assert (await world.cri.exec(container, "/bin/echo", "still")).stdout == b"still\n"
    await asyncio.to_thread(fine, instance, "pull", "-q", world.image)


def test_wrong_words_are_one_line_and_status_2(bare: Instance) -> None:
    for words, text in (
        (("pull", "docker.io/Foo/bar"), "crishim: image: 'docker.io/Foo/bar' "),
        (("pull", "x@sha256:" + "0" * 63), "crishim: image: 'x@sha256:"),
        (("pull", "127.0.0.1:99999/x"), "crishim: image: '127.0.0.1:99999/x' has the port 99999"),
        (("pull", "caf\udce9"), "crishim: image: 'caf\\xe9' "),
        (("rmi", "caf\udce9"), "crishim: 'caf\\xe9' is not UTF-8"),
        (("images", "--fo\udce9"), "crishim images: unrecognized arguments: --fo\\xe9"),
        (("images", "caf\udce9"), "crishim: 'caf\\xe9' is not UTF-8"),
        (("pull", "--creds", "u:\udce9", "127.0.0.1:1/x"), "crishim: --creds: must be UTF-8"),
        (("pull", "--creds", "nocolon", "busybox"), "crishim: --creds: must be USER:PASSWORD"),
        (("tag", "busybox", "a:b:c"), "crishim: name: 'a:b:c' has "),
        (("tag", "busybox", "x@sha256:" + "0" * 64), "crishim: name: 'x@sha256:"),
        (("images", "--format", "xml"), "crishim images: argument --format: invalid choice: 'xml' "),
    ):
        done = crishim(bare, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith(text)
        assert done.stderr.count("\n") == 1


def test_a_registry_that_is_not_there(bare: Instance) -> None:
    done = crishim(bare, "pull", "127.0.0.1:1/x")
    assert done.returncode == 1
    assert done.stderr.startswith("crishim: RegistryUnavailable: 127.0.0.1:1/x:latest: 127.0.0.1:1: no connection: ")


def test_bars_on_a_terminal(bare: Instance, busybox: PushedImage) -> None:
    ours, theirs = pty.openpty()
    words = ["pull", "--socket", bare.socket, busybox.reference]
    pull = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "crishim", *words],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has gone
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert pull.communicate(timeout=60)[0] == f"{busybox.id}\n".encode()
    assert pull.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search("layer [0-9a-f]{12} ━+ .*B done", plain), plain


class Stuck:
    """A blob that its registry does not go on with: `waiting` once somebody wants it, until `ended`."""

    def __init__(self, fake: FakeRegistry) -> None:
        image = fake.image("t", [layout.tar([Entry("f", b"x" * 100_000)])])
        self.id = image["id"]
        self.waiting, self.ended = threading.Event(), threading.Event()
        self._layer = image["layers"][0]
        fake.rules.append(self._hold)

    def _hold(self, handler: Handler) -> bool:
        if self.ended.is_set() or handler.command != "GET" or not handler.path.endswith(self._layer["digest"]):
            return False
        handler.break_off(b"", self._layer["size"])
        self.waiting.set()
        self.ended.wait(60)
        return True


def test_ctrl_c_cancels_the_pull(bare: Instance, fake: FakeRegistry) -> None:
    stuck = Stuck(fake)
    argv = [sys.executable, "-m", "crishim", "pull", "--socket", bare.socket, f"{fake.host}/a:t"]
    pull = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert stuck.waiting.wait(60)
        pull.send_signal(signal.SIGINT)
        out, err = pull.communicate(timeout=60)
        wait_for(lambda: "caller left" in bare.log())
    finally:
        stuck.ended.set()
        pull.kill()
    assert (pull.returncode, out, err) == (130, "", "")
    assert fine(bare, "images", "-q") == ""


def test_ctrl_c_is_nothing_to_a_pull_in_the_background(bare: Instance, fake: FakeRegistry) -> None:
    """A script's `crishim pull … &` starts with SIGINT ignored, and a Ctrl-C is for what is in the foreground."""
    stuck = Stuck(fake)
    argv = [sys.executable, "-m", "crishim", "pull", "-q", "--socket", bare.socket, f"{fake.host}/a:t"]
    argv = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *argv]
    pull = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert stuck.waiting.wait(60)
        pull.send_signal(signal.SIGINT)
        stuck.ended.set()
        out, err = pull.communicate(timeout=120)
    finally:
        stuck.ended.set()
        pull.kill()
    assert (pull.returncode, out, err) == (0, f"{stuck.id}\n", "")


def test_push_to_another_instance_gives_the_same_digest(
    bare: Instance, instance: Instance, registry: Registry, tmp_path: Path
) -> None:
    source = push(registry, "src/app:1", b"a" * 70_000, b"b" * 100)
    target = f"{registry.host}/copies/app:2"
    fine(bare, "pull", "-q", source)
    fine(bare, "tag", source, target)
    done = crishim(bare, "push", target)
    assert done.returncode == 0, done.stderr
    kinds = [line.split(": ")[1].split(",")[0] for line in done.stderr.splitlines()]
    assert sorted(kinds) == ["done", *["mounted from another repository"] * 3]
    name, _, digest = done.stdout.strip().partition("@")
    assert name == target
    again = crishim(bare, "push", target)
    assert [line.split(": ")[1].split(",")[0] for line in again.stderr.splitlines()].count("already there") == 3
    fine(instance, "pull", "-q", target)
    image = json.loads(fine(instance, "images", "--format", "json"))[0]
    assert image["manifest"] == digest
    assert image["digests"] == [f"{registry.host}/copies/app@{digest}"]
    by_id = fine(bare, "push", image["id"], f"{registry.host}/third:x")
    assert by_id == f"{registry.host}/third:x@{digest}\n"
    no_name = crishim(bare, "push", image["id"])
    assert (no_name.returncode, no_name.stderr.count("\n")) == (2, 1)
