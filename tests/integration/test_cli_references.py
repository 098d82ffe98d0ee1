"""Names, indexes, credentials and concurrent pulls through the command line."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import INDEX, FakeRegistry, Handler
from tests.support import layout
from tests.support.instance import Instance
from tests.support.layout import Entry, tar
from tests.support.ownership import SCOPE
from tests.support.registry import PASSWORD, USER, Registry
from tests.support.surroundings import ABSENT

SMALL = tar([Entry("small", b"x")])
ENVIRONMENT = {**os.environ, "DOCKER_CONFIG": ABSENT}
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def argv(instance: Instance, command: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "crishim", command, "--socket", instance.socket, *words]


def crishim(
    instance: Instance, command: str, *words: str, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv(instance, command, *words),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**ENVIRONMENT, **(environment or {})},
    )


def fine(instance: Instance, command: str, *words: str) -> str:
    done = crishim(instance, command, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bare(shared_instance: Instance) -> Iterator[Instance]:
    yield shared_instance
    for image in fine(shared_instance, "images", "-q", "--no-trunc").split():
        fine(shared_instance, "rmi", "--force", image)


def test_references(bare: Instance, fake: FakeRegistry) -> None:
    fake.image("t", [SMALL])
    fine(bare, "pull", "-q", f"{fake.host}/a:t")
    for name, normal in (
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("HOST.example:5000/a", "HOST.example:5000/a:latest"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("team/app:1", "docker.io/team/app:1"),
    ):
        fine(bare, "tag", f"{fake.host}/a:t", name)
        assert normal in json.loads(fine(bare, "images", "--format", "json", name))[0]["tags"]
    before = len(fake.requests)
    for name, text in (
        (f"{fake.host}/Foo/bar", "the repository must be in lower case"),
        (f"{fake.host}/x@sha256:{'a' * 63}", "which is not sha256: and 64"),
        ("a" * 64, "is an image id, not a name"),
        ("", "is empty"),
    ):
        done = crishim(bare, "pull", name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert text in done.stderr
    assert len(fake.requests) == before


def test_digests_and_removal(bare: Instance, fake: FakeRegistry) -> None:
    made = fake.image("v1", [SMALL])
    by_digest = f"{fake.host}/r@{made['digest']}"
    assert fine(bare, "pull", "-q", by_digest) == f"{made['id']}\n"
    image = json.loads(fine(bare, "images", "--format", "json"))[0]
    assert (image["id"], image["tags"], image["digests"]) == (made["id"], [], [by_digest])
    assert fine(bare, "images", "--digests").splitlines()[1].split()[:3] == [f"{fake.host}/r", "<none>", made["digest"]]
    fine(bare, "pull", "-q", f"{fake.host}/r:other@{made['digest']}")
    assert json.loads(fine(bare, "images", "--format", "json"))[0]["tags"] == [f"{fake.host}/r:other"]
    assert fine(bare, "rmi", by_digest) == f"untagged: {by_digest}\n"
    assert fine(bare, "rmi", made["id"][7:19]).splitlines()[-1] == f"deleted: {made['id']}"
    assert fine(bare, "images", "-q") == ""


def test_an_index_with_its_attestation_first(bare: Instance, fake: FakeRegistry) -> None:
    made = fake.image("one", [SMALL])
    odd = fake.document({"config": fake.blob(b"{}"), "layers": []}, "odd")
    entry = {key: made[key] for key in ("mediaType", "digest", "size")}
    unknown = {**odd, "platform": {"architecture": "unknown", "os": "unknown"}}
    here = {**entry, "platform": {"architecture": layout.architecture(), "os": "linux"}}
    fake.document({"manifests": [unknown, here]}, "all", INDEX)
    fake.document({"manifests": [unknown, {**entry, "platform": {"architecture": "mips", "os": "linux"}}]}, "no", INDEX)
    assert fine(bare, "pull", "-q", f"{fake.host}/a:all") == f"{made['id']}\n"
    done = crishim(bare, "pull", f"{fake.host}/a:no")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"no image for platform linux/{layout.architecture()}" in done.stderr
    assert "linux/mips" in done.stderr


def test_credentials_stay_with_their_origin(bare: Instance, fake: FakeRegistry, tmp_path: Path) -> None:
    made = fake.image("t", [SMALL])
    with FakeRegistry() as storage:
        storage.blobs = fake.blobs
        leaked: list[str] = []

        def watch(handler: Handler) -> bool:
            leaked.append(handler.headers.get("Authorization", ""))
            return False

        def guard(handler: Handler) -> bool:
            if handler.headers.get("Authorization") != f"Basic {LOGIN}":
                return handler.answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            if "/blobs/" in handler.path:
                return handler.answer(307, headers={"Location": f"http://{storage.host}{handler.path}"})
            return False

        storage.rules.append(watch)
        fake.rules.append(guard)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {fake.host: {"auth": LOGIN}}}))
        anonymous = crishim(bare, "pull", f"{fake.host}/a:t")
        assert anonymous.returncode == 1
        assert "access denied: it wants credentials" in anonymous.stderr
        done = crishim(bare, "pull", "-q", f"{fake.host}/a:t", environment={"DOCKER_CONFIG": str(tmp_path)})
        assert done.stdout == f"{made['id']}\n"
        assert leaked == ["", ""]


def test_eight_pulls_at_once_and_one_that_leaves(bare: Instance, fake: FakeRegistry) -> None:
    made = fake.image("t", [tar([Entry("f", os.urandom(50_000))]), SMALL])
    layer = made["layers"][0]["digest"]
    go = threading.Event()

    def hold(handler: Handler) -> bool:
        if handler.command == "GET" and handler.path.endswith(layer):
            go.wait(60)
        return False

    fake.rules.append(hold)
    pulls = [
        subprocess.Popen(
            argv(bare, "pull", "-q", f"{fake.host}/a:t"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for _ in range(8)
    ]
    try:
        while fake.count(f"GET /v2/a/blobs/{layer}") == 0 or not _talks(pulls[0]):
            assert all(pull.poll() is None for pull in pulls)
        pulls[0].send_signal(signal.SIGINT)
        pulls[0].wait(60)
        go.set()
        ends = [pull.communicate(timeout=120) for pull in pulls]
    finally:
        go.set()
        for pull in pulls:
            pull.kill()
    assert [pull.returncode for pull in pulls] == [130, *[0] * 7]
    assert {out for out, _ in ends[1:]} == {f"{made['id']}\n"}
    assert all(count == 1 for count in fake.bodies.values())


def _talks(client: "subprocess.Popen[str]") -> bool:
    """Tell whether a client has come as far as its first socket: a signal before that is the interpreter's."""
    held = f"/proc/{client.pid}/fd"
    for name in os.listdir(held):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(f"{held}/{name}").startswith("socket:"):
                return True
    return False


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Registry, Instance]]:
    """Return a registry with TLS and a password, and an instance whose hosts.toml knows its authority."""
    directory, certs = tmp_path / "registry", tmp_path / "certs"
    directory.mkdir()
    registry = Registry(str(directory), private=True)
    SCOPE.live.append(registry)
    (certs / registry.host).mkdir(parents=True)
    (certs / registry.host / "hosts.toml").write_text(
        f'server = "https://{registry.host}"\nca = "{registry.certificate}"\n'
    )
    instance = Instance(f'[images]\ncerts_d = ["{certs}"]\n')
    try:
        instance.start()
        yield registry, instance
    finally:
        instance.close()
        SCOPE.live.remove(registry)
        registry.close()


def test_credentials_in_all_their_forms(guarded: tuple[Registry, Instance], fake: FakeRegistry, tmp_path: Path) -> None:
    registry, instance = guarded
    fake.image("t", [SMALL])
    fine(instance, "pull", "-q", f"{fake.host}/a:t")
    target = f"{registry.host}/a/b:1"
    fine(instance, "tag", f"{fake.host}/a:t", target)
    for words in ((), ("--creds", f"{USER}:wrong")):
        done = crishim(instance, "push", target, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert f"{registry.host}: access denied" in done.stderr
        assert "wrong" not in done.stderr
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f'#!/bin/sh\ncat >{tmp_path}/asked\necho \'{{"Username":"{USER}","Secret":"{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    auth_file = tmp_path / "auth.json"
    auth_file.write_text(json.dumps({"auths": {f"{registry.host}/a": {"auth": LOGIN}}}))
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
    with_helper = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert crishim(instance, "push", "-q", target, "--creds", f"{USER}:{PASSWORD}").returncode == 0
    assert crishim(instance, "push", "-q", target, environment={"REGISTRY_AUTH_FILE": str(auth_file)}).returncode == 0
    assert crishim(instance, "push", "-q", target, environment=with_helper).returncode == 0
    assert (tmp_path / "asked").read_text() == registry.host
    assert crishim(instance, "pull", "-q", target, environment=with_helper).returncode == 0
    assert PASSWORD not in instance.log()
    assert LOGIN not in instance.log()
