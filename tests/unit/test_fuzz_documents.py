"""Fuzzing manifests, indexes, image configs and hosts.toml: a usable result, or the declared error."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim import codec
from crishim.errors import CrishimError, DataLossError, FailedPreconditionError
from crishim.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    choose,
    parse,
    parse_config,
)
from crishim.images.platform import Platform
from crishim.images.registry import hosts
from crishim.images.registry.transport import Transport, proxy_for
from tests.support.fuzzing import fuzzed

DIGEST = "sha256:" + "0" * 64
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

# --- values: what a key may hold, right or wrong ---------------------------------------------------------------------

_SCALARS = st.sampled_from(
    [None, True, 0, 1, -1, 2, 1 << 70, 1.5, float("inf"), float("nan"), "", "x", "\0", "\ud800", "sha256:", DIGEST, "ü"]
) | st.text(max_size=5)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("\ud800"), inner, max_size=3)
    ),
    max_leaves=6,
)


def _mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly a right value, at times any."""
    return st.integers(0, 9).flatmap(lambda n: _ANY if n == 0 else right)


def _object(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return _mostly(st.fixed_dictionaries({}, optional={key: _mostly(value) for key, value in keys.items()}))


_MEDIA = st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, LAYER, "", "text/html"])
_TEXTS = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)
_PLATFORM = _object(
    {
        "os": st.sampled_from(["linux", "windows", "unknown"]),
        "architecture": st.sampled_from(["amd64", "arm64", "arm", "unknown"]),
        "variant": st.sampled_from(["v6", "v7", "v8", "v1", "vx"]),
    }
)
_DESCRIPTOR = _object(
    {
        "mediaType": _MEDIA,
        "digest": st.just(DIGEST),
        "size": st.integers(0, 10**9),
        "platform": _PLATFORM,
        "urls": st.lists(st.text(max_size=5), max_size=2),
        "annotations": _TEXTS,
    }
)
_MANIFEST = _object(
    {
        "schemaVersion": st.sampled_from([1, 2]),
        "mediaType": _MEDIA,
        "config": _DESCRIPTOR,
        "layers": st.lists(_DESCRIPTOR, max_size=3),
        "manifests": st.lists(_DESCRIPTOR, max_size=3),
        "annotations": _TEXTS,
    }
)
_STRINGS = st.lists(st.text(max_size=4), max_size=3)
_CONFIG = _object(
    {
        "architecture": st.text(max_size=5),
        "os": st.text(max_size=5),
        "variant": st.text(max_size=3),
        "created": st.text(max_size=5),
        "rootfs": _object({"type": st.just("layers"), "diff_ids": st.lists(st.just(DIGEST), max_size=3)}),
        "config": _object(
            {
                "User": st.text(max_size=5),
                "Env": _STRINGS,
                "Entrypoint": _STRINGS,
                "Cmd": _STRINGS,
                "WorkingDir": st.text(max_size=5),
                "StopSignal": st.text(max_size=5),
                "Labels": _TEXTS,
                "Volumes": st.dictionaries(st.text(max_size=4), st.just({}), max_size=3),
            }
        ),
    }
)


@st.composite
def _bytes(draw: st.DrawFn, documents: st.SearchStrategy[Any], write: Callable[[Any], str]) -> bytes:
    """A document as bytes, whole or with a few bytes changed."""
    data = bytearray(write(draw(documents)).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


def _assert_usable(value: Any) -> None:
    """Every string of a result can go into protobuf messages and C strings; every number is a plain one."""
    if isinstance(value, str):
        assert "\0" not in value
        value.encode()
    elif is_dataclass(value):
        for field in fields(value):
            _assert_usable(getattr(value, field.name))
    elif isinstance(value, dict):
        _assert_usable(list(value.items()))
    elif isinstance(value, tuple | list | frozenset):
        for item in value:
            _assert_usable(item)
    else:
        assert value is None or type(value) in {int, bool, float}


def _assert_sayable(error: CrishimError, begin: str = "x") -> None:
    """An error's message names the document and can be sent, and a hostile document cannot make it endless."""
    str(error).encode()
    assert str(error).startswith(begin)
    assert len(str(error)) < 2000


@fuzzed(400)
@given(_bytes(_MANIFEST, json.dumps), st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_LIST, "", "text/html; x"]))
def test_manifests_and_indexes(data: bytes, media_type: str) -> None:
    try:
        document = parse(data, media_type, "x")
    except CrishimError as error:
        _assert_sayable(error)
        return
    _assert_usable(document)
    if isinstance(document, Index):
        try:
            _assert_usable(choose(document, Platform("arm", variant="v7"), "x"))
        except CrishimError as error:
            _assert_sayable(error)


@fuzzed(400)
@given(_bytes(_CONFIG, json.dumps))
def test_image_configs(data: bytes) -> None:
    try:
        config = parse_config(data, "x")
    except DataLossError as error:
        _assert_sayable(error)
        return
    _assert_usable(config)
    assert codec.loads(type(config), codec.dumps(config)) == config


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion": 2, "mediaType": ["x"], "layers": []}',
        b'{"schemaVersion": 2, "mediaType": {"a": 1}}',
        b'{"layers": [], "config": {"digest": "%s", "size": 1, "annotations": {"\\ud800": "x"}}}' % DIGEST.encode(),
        b'{"layers": [], "config": {"digest": "%s", "size": 1, "annotations": {"x": "\\ud800"}}}' % DIGEST.encode(),
        b'{"manifests": ' + b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{\0}\0",
    ],
)
def test_manifests_that_once_were_a_fault(data: bytes) -> None:
    with pytest.raises(DataLossError) as caught:
        parse(data, OCI_MANIFEST, "x")
    _assert_sayable(caught.value)


@pytest.mark.parametrize("name", ["Volumes", "Labels", "Env"])
def test_names_that_no_c_string_and_no_protobuf_string_can_hold(name: str) -> None:
    for bad in ("\ud800", "a\0b"):
        value = [bad] if name == "Env" else {bad: {} if name == "Volumes" else "x"}
        with pytest.raises(DataLossError, match=name):
            parse_config(json.dumps({"config": {name: value}}).encode(), "x")


# --- hosts.toml ------------------------------------------------------------------------------------------------------

_URLS = st.sampled_from(
    [
        "https://mirror.io",
        "http://127.0.0.1:5000/v2",
        "mirror.io:5000",
        "https://[::1]:5000",
        "http://[::1",
        "http://a:99999",
        "http://a:b",
        "http://user@a",
        "ftp://a",
        "://",
        "a b",
        "http://ü.de",
        "http://a/%zz?x#y",
        "\n",
    ]
)
_FILES = st.sampled_from(["ca.pem", "/a.pem", "", "../x", "\0"])
_SECTION = {
    "capabilities": st.lists(st.sampled_from(["pull", "resolve", "push", "x"]), max_size=3),
    "ca": _FILES | st.lists(_FILES, max_size=2),
    "client": _FILES | st.lists(_FILES | st.lists(_FILES, max_size=3), max_size=2),
    "skip_verify": st.booleans(),
    "override_path": st.booleans(),
    "dial_timeout": st.sampled_from(["10s", "1m", "0s", "9999999h", "1", "-1s", "1.5.5s", "9" * 400 + "h"]),
    "header": st.dictionaries(
        st.sampled_from(["X-One", "x", "", "a b", "a\r\nb", "ü"]),
        st.sampled_from(["1", "a\r\nb", "ü", "", ["a", "b"], [1]]),
        max_size=2,
    ),
}
_HOSTS = _object({"server": _URLS, **_SECTION, "host": st.dictionaries(_URLS, _object(_SECTION), max_size=3)})


def _toml(value: Any) -> str:
    """Write a document as TOML: inline tables below the top, and whatever TOML cannot say as a string."""
    if not isinstance(value, dict):
        return _inline(value)
    return "".join(f"{_inline(str(key))} = {_inline(item)}\n" for key, item in value.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(str(key))} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = "" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@fuzzed(400)
@given(_bytes(_HOSTS, _toml), st.sampled_from(["docker.io", "r.io", "127.0.0.1:5000", "[::1]:5000"]))
def test_hosts_toml(data: bytes, host: str) -> None:
    try:
        endpoints = hosts.parse(data, host, "/certs.d/x/hosts.toml")
    except FailedPreconditionError as error:
        _assert_sayable(error, "/certs.d/x/hosts.toml: ")
        return
    _assert_usable(endpoints)
    assert endpoints
    for endpoint in endpoints:
        assert re.match(r"https?://[^/@\s]+(/|$)", endpoint.base)
        assert 0 < endpoint.dial_seconds <= 3600
        hash(endpoint.tls)
        for name, value in endpoint.headers:
            assert not re.search(r"[\r\n\0]", name + value)
        assert proxy_for(endpoint.base, {"HTTP_PROXY": "p", "HTTPS_PROXY": "p", "NO_PROXY": "mirror.io"}) in {
            "",
            "http://p",
        }
    Transport(1).close()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("server = 'http://[::1'", "server: "),
        ("server = 'http://a:99999'", "server: "),
        ("server = 'http://a:x'", "server: "),
        ("server = 'http://a b'", "server: "),
        ("[host.'::']", "host"),
        ("x = " + "[" * 5000, "nested"),
        ("x = " + "9" * 5000, "digits"),
        ("dial_timeout = '9999999999h'", "dial_timeout"),
        ('[header]\nx = "a\\r\\nb: c"', "header"),
        ("[header]\n'a b' = 'x'", "header"),
        ('ca = "a\\u0000b"', "ca"),
        ("#" * (1 << 20) + "#", "larger"),
    ],
)
def test_hosts_files_that_once_were_a_fault(text: str, part: str) -> None:
    with pytest.raises(FailedPreconditionError, match=part):
        hosts.parse(text.encode(), "r.io", "hosts.toml")
