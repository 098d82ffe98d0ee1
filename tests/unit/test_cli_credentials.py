"""Credentials of the person at the shell, from files as docker and podman write them and from helper programs."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from crishim._proto.crishim.v1.images_pb2 import Credentials
from crishim.cli import credentials
from crishim.errors import FailedPreconditionError, InvalidArgumentError
from tests.support.surroundings import ABSENT

AUTH = base64.b64encode(b"u:p").decode()


def write(directory: Path, document: Any) -> dict[str, str]:
    (directory / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return {"DOCKER_CONFIG": str(directory), "HOME": ABSENT}


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str = "stub") -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("https://index.docker.io/v1/", "busybox"),
        ("docker.io", "docker.io/library/busybox"),
        ("index.docker.io", "busybox:1"),
        ("r.io:5000", "r.io:5000/a"),
        ("https://r.io:5000", "r.io:5000/a/b@sha256:" + "0" * 64),
        ("http://r.io/v2/", "r.io/a"),
        ("r.io/team", "r.io/team/app"),
        ("r.io/team/app", "r.io/team/app:1"),
        ("localhost:5000", "localhost:5000/a/b"),
    ],
)
def test_keys_of_auths(tmp_path: Path, key: str, image: str) -> None:
    environment = write(tmp_path, {"auths": {"other.io": {"auth": "eDp4"}, key: {"auth": AUTH}}})
    assert credentials.of(image, None, environment) == Credentials(auth=AUTH)


@pytest.mark.parametrize(
    ("key", "image"),
    [("r.io", "r.io:5000/a"), ("r.io/team", "r.io/teams/app"), ("r.io/team/app", "r.io/team"), ("r.io", "busybox")],
)
def test_keys_that_are_for_something_else(tmp_path: Path, key: str, image: str) -> None:
    assert credentials.of(image, None, write(tmp_path, {"auths": {key: {"auth": AUTH}}})) is None


def test_the_longest_key_counts(tmp_path: Path) -> None:
    auths = {"r.io": {"auth": "YTph"}, "r.io/team": {"auth": "Yjpi"}}
    environment = write(tmp_path, {"auths": auths})
    assert credentials.of("r.io/team/app", None, environment) == Credentials(auth="Yjpi")
    assert credentials.of("r.io/other", None, environment) == Credentials(auth="YTph")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "u", "password": "p"}, Credentials(username="u", password="p")),
        ({"identitytoken": "t"}, Credentials(identity_token="t")),
        ({"registrytoken": "t"}, Credentials(registry_token="t")),
        ({"auth": AUTH, "email": "a@b"}, Credentials(auth=AUTH)),
        ({}, None),
    ],
)
def test_forms_of_an_entry(tmp_path: Path, entry: Any, expected: Credentials | None) -> None:
    assert credentials.of("r.io/a", None, write(tmp_path, {"auths": {"r.io": entry}})) == expected


def test_where_the_file_is(tmp_path: Path) -> None:
    assert credentials.config_path({"HOME": "/home/x"}) == "/home/x/.docker/config.json"
    assert credentials.config_path({"HOME": "/home/x", "DOCKER_CONFIG": "/d"}) == "/d/config.json"
    assert credentials.config_path({"DOCKER_CONFIG": "/d", "REGISTRY_AUTH_FILE": "/a.json"}) == "/a.json"
    assert credentials.of("r.io/a", None, {"HOME": str(tmp_path)}) is None
    with pytest.raises(InvalidArgumentError, match=rf"REGISTRY_AUTH_FILE: {ABSENT}/a.json does not exist"):
        credentials.of("r.io/a", None, {"REGISTRY_AUTH_FILE": f"{ABSENT}/a.json"})


def test_the_flag_counts_alone(tmp_path: Path) -> None:
    environment = write(tmp_path, "no JSON")
    assert credentials.of("r.io/a", "u:p:q", environment) == Credentials(username="u", password="p:q")
    for wrong in ("u", ":p", ""):
        with pytest.raises(InvalidArgumentError, match="--creds: must be USER:PASSWORD"):
            credentials.of("r.io/a", wrong, environment)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "config.json: is not JSON"),
        ("[]", "config.json: must hold a JSON object"),
        ({"auths": [], "credHelpers": [1]}, "config.json: credHelpers must be an object"),
        ({"auths": {"r.io": "x"}}, "config.json: auths.r.io must be an object"),
        ({"auths": {"r.io": {"auth": 3}}}, "config.json: auths.r.io.auth must be a string"),
        ({"credsStore": 3}, "config.json: credsStore must be the name of a docker-credential-NAME program"),
        ({"credHelpers": {"r.io": "../x"}}, "config.json: credHelpers.r.io must be the name"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        credentials.of("r.io/a", None, write(tmp_path, document))
    assert message in str(caught.value)


def test_helpers_are_asked_for_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'test "$1" = get || exit 9; s=$(cat); printf \'{"ServerURL":"%s","Username":"%s","Secret":"p"}\' "$s" "$s"'
    helper(tmp_path, monkeypatch, script)
    environment = write(tmp_path, {"credsStore": "stub"})
    assert credentials.of("r.io:5000/a", None, environment) == Credentials(username="r.io:5000", password="p")
    hub = credentials.of("busybox", None, environment)
    assert hub == Credentials(username="https://index.docker.io/v1/", password="p")
    environment = write(tmp_path, {"credHelpers": {"r.io": "stub"}, "credsStore": "none", "auths": {"r.io": {}}})
    assert credentials.of("r.io/a", None, environment) == Credentials(username="r.io", password="p")


def test_a_helper_gives_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, 'echo \'{"Username":"<token>","Secret":"t"}\'')
    environment = write(tmp_path, {"credsStore": "stub"})
    assert credentials.of("r.io/a", None, environment) == Credentials(identity_token="t")


def test_a_helper_that_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    assert credentials.of("r.io/a", None, write(tmp_path, {"credsStore": "stub"})) is None
    assert credentials.of("r.io/a", None, write(tmp_path, {"credHelpers": {"r.io": "stub"}})) is None
    fallback = {"credsStore": "stub", "auths": {"r.io": {"auth": AUTH}}}
    assert credentials.of("r.io/a", None, write(tmp_path, fallback)) == Credentials(auth=AUTH)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo the keyring is locked; exit 1", "docker-credential-stub: the keyring is locked"),
        ("echo oh no >&2; exit 3", "docker-credential-stub: oh no"),
        ("exit 3", "docker-credential-stub: exit status 3"),
        ("echo hello", "docker-credential-stub: its answer is no JSON with Username and Secret"),
        ('echo \'{"Username": 3, "Secret": 4}\'', "its answer is no JSON"),
        ("echo '[]'", "its answer is no JSON"),
        ("sleep 5", "docker-credential-stub has not answered in 0 s"),
    ],
)
def test_helpers_that_fail_are_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    if script.startswith("sleep"):
        script = "exec sleep 5"
        monkeypatch.setattr(credentials, "HELPER_SECONDS", 0.2)
    helper(tmp_path, monkeypatch, script)
    with pytest.raises(FailedPreconditionError) as caught:
        credentials.of("r.io/a", None, write(tmp_path, {"credsStore": "stub"}))
    assert message in str(caught.value)


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="docker-credential-absent is not on PATH"):
        credentials.of("r.io/a", None, write(tmp_path, {"credsStore": "absent"}))
