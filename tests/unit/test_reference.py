"""Image references: hosts, ports, tags, digests, ids, and the grammar's edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidArgumentError
from crishim.images.reference import is_digest, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("HOST.example:5000/a", "HOST.example:5000/a:latest"),
        ("Host/a", "Host/a:latest"),
        ("[::1]:5000/a:x", "[::1]:5000/a:x"),
        ("registry.k8s.io/e2e-test-images/busybox:1.29-2", "registry.k8s.io/e2e-test-images/busybox:1.29-2"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}"),
        (f"r.io/x:v1@{DIGEST}", f"r.io/x:v1@{DIGEST}"),
        ("a__b/c-d.e--f", "docker.io/a__b/c-d.e--f:latest"),
        ("deadbeef", "docker.io/library/deadbeef:latest"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert str(parse(text)) == normal
    assert str(parse(normal)) == normal


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("docker.io/Foo/bar", "lower case"),
        ("Foo", "lower case"),
        ("x@sha256:" + "a" * 63, "64"),
        ("x@sha256:" + "A" * 64, "64"),
        ("x@", "digest"),
        ("x@md5:" + "a" * 32, "digest"),
        ("a" * 64, "image id"),
        ("x:", "tag"),
        ("x:-a", "tag"),
        ("x:" + "a" * 129, "tag"),
        ("localhost:5000/", "repository"),
        ("a//b", "repository part"),
        ("a/", "repository part"),
        ("-host.example/a", "host"),
        ("https://r.io/x", "host"),
        ("r.io:port/x", "host"),
        ("r.io:99999/x", "port 99999"),
        ("[::1]:65536/x", "port 65536"),
        ("localhost:0/x", "port 0"),
        ("a b", "repository part"),
        ("a\n", "repository part"),
        ("r.io/" + "a" * 255, "longer"),
    ],
)
def test_refused_with_the_field_and_the_reason(text: str, part: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(text, "image.image")
    assert caught.value.field == "image.image"
    assert part in str(caught.value)


def test_a_digest_wins_and_makes_no_tag() -> None:
    both = parse(f"r.io/x:v1@{DIGEST}")
    assert (both.target, both.repo_tag) == (DIGEST, "")
    assert parse("r.io/x").repo_tag == "r.io/x:latest"


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert is_digest("sha512:" + "a" * 128)
    assert not is_digest("sha256:" + "a" * 128)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except InvalidArgumentError:
        return
    assert parse(str(found)) == found
