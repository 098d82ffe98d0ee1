"""Manifests, indexes and configs, right and hostile."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import CrishimError, DataLossError, NotFoundError, UnimplementedError
from crishim.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    choose,
    parse,
    parse_config,
)
from crishim.images.platform import Platform, rank

AMD64 = Platform("amd64")


def _digest(number: int) -> str:
    return f"sha256:{number:064x}"


def _entry(number: int, media_type: str = OCI_MANIFEST, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(number), "size": 100, **more}


def _platform(text: str) -> dict[str, Any]:
    system, architecture, *variant = text.split("/")
    return {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}


def _index(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> Index:
    data = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
    document = parse(data, "", "x")
    assert isinstance(document, Index)
    return document


def _manifest(**change: Any) -> bytes:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _digest(2), "size": 5}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _digest(1), "size": 3},
        "layers": [layer],
    }
    return json.dumps(document | change).encode()


def test_an_attestation_that_comes_first_is_never_chosen() -> None:
    index = _index(
        _entry(1, platform=_platform("unknown/unknown")),
        _entry(2, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        _entry(3, platform=_platform("linux/arm64/v8")),
        _entry(4, platform=_platform("linux/amd64")),
    )
    assert [entry.digest for entry in choose(index, AMD64, "x")] == [_digest(4)]
    assert [e.digest for e in choose(index, Platform("arm64", "linux", "v8"), "x")] == [_digest(3)]


def test_no_match_names_the_platform_and_what_there_is() -> None:
    index = _index(_entry(1, platform=_platform("unknown/unknown")), _entry(2, platform=_platform("windows/amd64")))
    with pytest.raises(NotFoundError, match=r"linux/amd64.*windows/amd64"):
        choose(index, AMD64, "x")


def test_entries_without_a_platform_are_candidates_only_if_none_matches() -> None:
    index = _index(_entry(1), _entry(2, platform=_platform("linux/amd64")))
    assert [e.digest for e in choose(index, AMD64, "x")] == [_digest(2)]
    assert [e.digest for e in choose(_index(_entry(1), _entry(5)), AMD64, "x")] == [_digest(1), _digest(5)]


def test_arm_variants_run_downwards_only() -> None:
    v7 = Platform("arm", "linux", "v7")
    index = _index(
        _entry(5, platform=_platform("linux/arm/v5")),
        _entry(6, platform=_platform("linux/arm/v6")),
        _entry(8, platform=_platform("linux/arm/v8")),
        media_type=DOCKER_LIST,
    )
    assert [e.digest for e in choose(index, v7, "x")] == [_digest(6), _digest(5)]
    assert rank(Platform("arm", "linux", "v6"), v7) is None
    assert rank(Platform("arm64", "linux", "v8"), Platform("arm64")) == 0
    assert rank(AMD64, Platform("amd64", "linux", "v3")) is None
    for odd in ("v\u00b2", "v" + "9" * 5000, "v", "v-1"):
        assert rank(v7, Platform("arm", "linux", odd)) is None
    assert rank(AMD64, Platform("x86_64")) == 0


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_a_manifest(media_type: str) -> None:
    found = parse(_manifest(mediaType=media_type), media_type, "x")
    assert isinstance(found, Manifest)
    assert found.layers[0].digest == _digest(2)


def test_a_manifest_without_a_type_is_known_by_its_shape() -> None:
    document = json.loads(_manifest())
    del document["mediaType"]
    assert isinstance(parse(json.dumps(document).encode(), "text/plain", "x"), Manifest)


BOTH = {"manifests": [], "config": _entry(1), "layers": []}


@pytest.mark.parametrize(
    ("document", "stated"),
    [
        (BOTH, ""),
        (BOTH | {"mediaType": OCI_INDEX}, OCI_INDEX),
        (BOTH | {"mediaType": DOCKER_MANIFEST}, DOCKER_MANIFEST),
        ({"manifests": [], "config": _entry(1)}, ""),
        ({"manifests": [], "layers": []}, ""),
        ({"manifests": [], "mediaType": DOCKER_MANIFEST}, ""),
        ({"config": _entry(1), "layers": [], "mediaType": OCI_INDEX}, ""),
        ({"config": _entry(1), "layers": []}, OCI_INDEX),
        ({"manifests": []}, f"{DOCKER_MANIFEST}; charset=utf-8"),
        ({"config": _entry(1), "layers": [], "mediaType": DOCKER_MANIFEST}, OCI_INDEX),
    ],
)
def test_a_document_that_can_be_taken_for_another_kind_is_refused(document: dict[str, Any], stated: str) -> None:
    with pytest.raises(DataLossError, match=r"has both|is not what it holds"):
        parse(json.dumps(document).encode(), stated, "r.io/x")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"config": {}, "layers": [], "Manifests": []}', "Manifests"),
        ('{"config": {}, "layers": [], "manife\u017fts": []}', "manife\u017fts"),
        ('{"manifests": [], "LAYERS": []}', "LAYERS"),
        ('{"manifests": [], "mediatype": "x"}', "mediatype"),
        ('{"config": {}, "layers": [], "layers": []}', "layers"),
        ('{"config": {"digest": "a", "digest": "b"}, "layers": []}', "digest"),
    ],
)
def test_a_document_whose_keys_others_read_otherwise_is_refused(text: str, key: str) -> None:
    with pytest.raises(DataLossError, match=f"{key}.*(others read|more than once)"):
        parse(text.encode(), "", "r.io/x")


def test_an_empty_list_of_layers_may_be_null() -> None:
    document = parse(json.dumps({"config": _entry(1), "layers": None}).encode(), DOCKER_MANIFEST, "r.io/x")
    assert isinstance(document, Manifest)
    assert document.layers == ()


def test_schema_1_is_refused_with_a_sentence() -> None:
    with pytest.raises(UnimplementedError, match="schema 1"):
        parse(b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.docker.distribution.manifest.v1+prettyjws", "x")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b'{"mediaType": "text/html"}', "unknown manifest type"),
        (_manifest(layers={}), "layers"),
        (_manifest(layers=[5]), "layers[0]"),
        (_manifest(layers=[_entry(1, "application/vnd.in-toto+json")]), "in-toto"),
        (_manifest(layers=[_entry(1)] * 2000), "layers"),
        (_manifest(config=None), "config"),
        (_manifest(config=_entry(1) | {"size": -1}), "config.size"),
        (_manifest(config=_entry(1) | {"size": True}), "config.size"),
        (_manifest(config=_entry(1) | {"size": 1 << 40}), "config"),
        (_manifest(config=_entry(1) | {"digest": "sha256:../../x"}), "config.digest"),
    ],
)
def test_malformed_manifests_name_the_document_and_the_key(data: bytes, part: str) -> None:
    with pytest.raises(DataLossError) as caught:
        parse(data, "", "r.io/x: manifest sha256:1")
    assert "r.io/x" in str(caught.value)
    assert part in str(caught.value)


def test_a_config() -> None:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [_digest(7)]},
        "config": {
            "User": "1003:1004",
            "Env": ["A=1"],
            "Entrypoint": None,
            "Cmd": ["x"],
            "Labels": {"io.kubernetes.pod.name": "mine"},
            "Volumes": {"/data": {}},
            "StopSignal": "SIGQUIT",
        },
    }
    found = parse_config(json.dumps(document).encode(), "x")
    assert (found.diff_ids, found.config.user, found.config.cmd) == ((_digest(7),), "1003:1004", ("x",))
    assert (found.config.volumes, found.config.stop_signal) == (("/data",), "SIGQUIT")


@pytest.mark.parametrize(
    "inner", [{"Env": [1]}, {"Env": "A=1"}, {"Cmd": ["a\0b"]}, {"Labels": []}, {"User": 5}, {"User": "u" * 1025}, 7]
)
def test_hostile_configs(inner: Any) -> None:
    with pytest.raises(DataLossError, match="config"):
        parse_config(json.dumps({"config": inner, "rootfs": {"diff_ids": []}}).encode(), "x")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["config", "layers", "manifests", "digest", "size"]), inner)
    ),
)


@given(_JSON)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    for kind in (OCI_MANIFEST, OCI_INDEX, ""):
        try:
            parse(json.dumps(value).encode(), kind, "x")
        except CrishimError:
            continue
    try:
        parse_config(json.dumps(value).encode(), "x")
    except CrishimError:
        return
