"""The store fails at the commits of layers: what memory, the store and the directory hold stays the same."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import ResourceExhaustedError
from crishim.images.layers import Layers
from crishim.store.database import Database
from crishim.store.store import Store

REPORT = {"bytes": 5, "inodes": 1, "lists_root": True, "opaque": []}


def full(self: Database, sql: str, values: Sequence[Any] = ()) -> int:
    raise ResourceExhaustedError("no space left")


async def test_a_layer_that_cannot_be_recorded_is_not_published_and_one_that_cannot_be_forgotten_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path / "state.db"))
    layers = Layers(store, str(tmp_path / "layers"))
    layers.open()
    path = layers.new_directory()
    with monkeypatch.context() as patch:
        patch.setattr(Database, "change", full)
        with pytest.raises(ResourceExhaustedError):
            layers.publish(path, "key", "diff", REPORT)
    assert os.listdir(layers.root) == [os.path.basename(path)], "whoever made it discards it by this name"
    assert (layers.get("key"), layers.size) == (None, 0)
    layers.publish(path, "key", "diff", REPORT)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "change", full)
        with pytest.raises(ResourceExhaustedError):
            layers.remove("key")
    assert layers.size == 5
    assert os.path.isdir(layers.path("key"))
    layers.remove("key")
    assert (layers.get("key"), layers.size) == (None, 0)
    await layers.settled()
    store.close()
