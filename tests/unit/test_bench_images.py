"""The bench's images, where its programs come from and who is measured with them."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from scripts.benchlib import oci, peers, plan, pods
from scripts.benchlib.measure import Samples
from scripts.benchlib.registry import Registry
from scripts.benchlib.rows import CRIO
from scripts.benchlib.setting import Setting
from scripts.benchlib.systems import System


def test_an_image_names_its_blobs_by_digest() -> None:
    found = oci.image([b"one" * 1000, b"two"], ["/bin/sh"])
    manifest = json.loads(found.manifest)
    for described in (manifest["config"], *manifest["layers"]):
        blob = found.blobs[described["digest"]]
        assert described["size"] == len(blob)
        assert described["digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    config = json.loads(found.blobs[manifest["config"]["digest"]])
    plain = [gzip.decompress(found.blobs[layer["digest"]]) for layer in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
    assert found == oci.image([b"one" * 1000, b"two"], ["/bin/sh"])


def test_a_big_layer_has_its_share_of_files_and_the_same_bytes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "BIG_FILES", 8)
    monkeypatch.setattr(oci, "BIG_FILE", 1000)
    data = oci._big_layer(1)
    assert data == oci._big_layer(1)
    assert data != oci._big_layer(2)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [entry for entry in tar if entry.isfile()]
    assert [entry.size for entry in files] == [1000, 1000]


def test_a_seed_gives_the_cache_what_it_has(tmp_path: Path) -> None:
    seed, cache = tmp_path / "seed", tmp_path / "cache"
    seed.mkdir()
    (seed / "runc").write_text("#!/bin/sh\necho runc version 9\n")
    (seed / "runc").chmod(0o755)
    found = peers.prepare(str(cache), [str(seed)], build=False)
    assert found.runc == str(cache / "bin/runc")
    assert found.versions["runc"] == "runc version 9"


def test_a_peer_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peers, "DEBIAN_PLUGINS", os.fspath(tmp_path))
    found = peers.prepare(str(tmp_path / "cache"), [], build=False)
    assert (found.containerd, found.runc, found.crun, found.plugins) == (None, None, None, None)
    assert (found.crio, found.conmon) == (None, None)
    assert [note.split()[0] for note in found.notes] == ["containerd", "runc", "crun", "crio", "no", "unpigz"]


def test_one_that_fails_takes_no_further_turn_and_the_others_do() -> None:
    taken: list[str] = []
    samples = Samples()

    class Fails:
        name = "fails"

        @property
        def cage(self) -> NoReturn:
            taken.append(self.name)
            raise RuntimeError("no more")

    class Works:
        name = "works"
        cage = SimpleNamespace(cpu_ms=lambda: 0.0)
        client = SimpleNamespace(start=lambda: taken.append("works"), execute=lambda *_: b"", remove=lambda _: None)

    systems = cast("list[System]", [Fails(), Works()])
    pods.measure(systems, samples, 2, lambda what: plan._survived(what, samples))
    assert taken == ["fails", "works", "works", "works"]
    assert samples.notes == ["pods on fails: failed: no more"]
    assert {row: list(systems) for row, systems in samples.values.items()} == {row: ["works"] for row in pods.ROWS}


def test_crio_is_measured_only_with_all_that_it_needs() -> None:
    registry = cast("Registry", None)
    whole = peers.Peers("bin", runc="runc", crio="crio", conmon="conmon", plugins="plugins")
    assert list(plan._crio(Setting(whole, "", "", None), registry)) == [CRIO]
    assert plan._crio(Setting(whole, "", "", ["crishim"]), registry) == {}
    for lacking in (
        replace(whole, runc=None),
        replace(whole, crio=None),
        replace(whole, conmon=None),
        replace(whole, plugins=None),
    ):
        assert plan._crio(Setting(lacking, "", "", None), registry) == {}
