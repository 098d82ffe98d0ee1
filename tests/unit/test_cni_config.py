"""Which CNI network a directory gives, what is wrong with one, and what happens while it changes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import FailedPreconditionError
from crishim.network.cni import config
from crishim.network.cni.config import Watcher, load, parse

LIST = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": True, "mac": False}}],
}


def refused(document: Any) -> str:
    with pytest.raises(FailedPreconditionError) as caught:
        parse(document if isinstance(document, str) else json.dumps(document), "f")
    return str(caught.value)


def test_a_list() -> None:
    found = parse(json.dumps(LIST))
    assert (found.name, found.version, found.disable_check, found.disable_gc) == ("pods", "1.0.0", False, False)
    assert [plugin.type for plugin in found.plugins] == ["bridge", "portmap"]
    assert found.plugins[1].capabilities == {"portMappings"}
    assert parse(found.text) == found


def test_a_single_plugin_is_wrapped() -> None:
    found = parse('{"cniVersion": "0.3.1", "name": "one", "type": "ptp", "mtu": 1400}')
    assert (found.name, found.version) == ("one", "0.3.1")
    assert found.plugins[0].document["mtu"] == 1400


@pytest.mark.parametrize(
    ("more", "version"),
    [
        ({}, "1.0.0"),
        ({"cniVersions": ["0.4.0", "1.1.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersion": ""}, "0.1.0"),
    ],
)
def test_version(more: dict[str, Any], version: str) -> None:
    assert parse(json.dumps({**LIST, **more})).version == version


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "f is not JSON"),
        ([], "f: must hold a JSON object"),
        ({**LIST, "name": "a/b"}, "f: name: must be"),
        ({**LIST, "plugins": []}, "f: plugins: must be a list"),
        ({**LIST, "plugins": [{"type": "../sh"}]}, "f: plugins[0].type: must be"),
        ({**LIST, "plugins": [{}]}, "f: plugins[0].type: must be"),
        ({**LIST, "cniVersion": "2.0.0"}, "f: cniVersion: must be one of 0.1.0"),
        ({**LIST, "disableCheck": 1}, "f: disableCheck: must be true or false"),
        ({**LIST, "plugins": [{"type": "a", "capabilities": []}, {"type": "b", "capabilities": [1]}]}, "[1].capabil"),
    ],
)
def test_what_is_wrong_is_named(document: Any, message: str) -> None:
    assert message in refused(document)


def test_first_by_name(tmp_path: Path) -> None:
    assert load(str(tmp_path / "none")) is None
    (tmp_path / "00-readme.txt").write_text("no network")
    assert load(str(tmp_path)) is None
    (tmp_path / "20.conflist").write_text(json.dumps({**LIST, "name": "second"}))
    (tmp_path / "10.conf").write_text('{"name": "first", "type": "ptp"}')
    found = load(str(tmp_path))
    assert found is not None
    assert found.name == "first"


def test_a_half_written_file_is_waited_out(tmp_path: Path) -> None:
    now = [0.0]
    watcher = Watcher(str(tmp_path), patience=2.0, clock=lambda: now[0])
    assert watcher.current() is None
    path = tmp_path / "10.conflist"
    path.write_text(json.dumps(LIST))
    good = watcher.current()
    assert good is not None
    path.write_text(json.dumps(LIST)[:20])
    assert watcher.current() == good
    now[0] = 2.0
    with pytest.raises(FailedPreconditionError, match=r"10\.conflist is not JSON"):
        watcher.current()
    path.write_text(json.dumps({**LIST, "name": "new"}))
    found = watcher.current()
    assert found is not None
    assert found.name == "new"
    os.unlink(path)
    assert watcher.current() is None


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "10.conflist").write_text(json.dumps(LIST))
    watcher = Watcher(str(tmp_path))
    found = watcher.current()
    monkeypatch.setattr(config, "load", None)
    assert watcher.current() is found
