"""Fuzzing archives: whatever they hold, contents or the declared error; instructions for imports likewise."""

import asyncio
import contextlib
import copy
import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import CrishimError, DataLossError, InvalidArgumentError, NotFoundError, UnimplementedError
from crishim.images.archive import contents
from crishim.images.archive.changes import apply
from crishim.images.archive.spool import Spool, Spools
from crishim.images.platform import Platform
from crishim.images.settings import ImageSettings
from tests.support import archives
from tests.support.archives import Layout, Members, made, pack
from tests.support.fuzzing import fuzzed
from tests.support.layout import Entry, architecture

NAME = "docker.io/library/demo:1"
IMAGE = made([Entry("x")], [Entry("y")])
HOST = Platform(architecture())
SETTINGS = ImageSettings(max_layer_bytes=1 << 20, max_ratio=100, ratio_floor_bytes=1 << 20)


def both() -> Members:
    layout = Layout()
    layout.add(layout.image(IMAGE, platform={"os": "linux", "architecture": architecture()}), NAME)
    layout.add(layout.image(made([Entry("z")])), **{contents.IMAGE_NAME: "quay.io/a:2"})
    return [*layout.members(), *archives.docker_new({IMAGE: [NAME]})]


SOURCES = [archives.docker_old({IMAGE: [NAME, "b"]}), archives.oci(IMAGE, NAME), both()]
LISTS = ("manifest.json", "index.json", "oci-layout")


@pytest.fixture(scope="module")
def top() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        yield path


def received(top: str, data: bytes) -> contents.Contents:
    """Spool an archive and read its contents, as a load does."""

    async def run() -> contents.Contents:
        spools = Spools(top)
        spools.open()
        async with spools.new() as spool:
            return _read(spool, data)

    try:
        return asyncio.run(run())
    finally:
        assert os.listdir(f"{top}/loads") == []


def _read(spool: Spool, data: bytes) -> contents.Contents:
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        piece = data[position : position + size]
        position += len(piece)
        return piece

    spool.receive(read, SETTINGS, "the archive")
    return contents.read(spool, HOST, "the archive")


def usable(found: contents.Contents) -> None:
    """What is returned can be worked with: names are whole, digests are digests, members exist."""
    assert found.images
    for image in found.images:
        assert image.target.startswith(("sha256:", "sha512:"))
        assert all(name.host and name.path and (name.tag or name.digest) for name in image.names)
    assert all(member.digest.startswith(("sha256:", "sha512:")) for member in found.members)
    assert all(json.loads(document)["layers"] is not None for document in found.documents.values())


# --- lists of contents -----------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 1 << 70, "", "x", "\0", "\ud800", "../..", "/etc/passwd", "index.json", NAME])
    | st.sampled_from([name for source in SOURCES for name, _ in source])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _mutated(draw: st.DrawFn) -> Members:
    """An archive with one place of one of its lists replaced, or with members missing, twice or linked."""
    members = list(draw(st.sampled_from(SOURCES)))
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["value", "value", "value", "drop", "twice", "link"]))
        if kind == "value":
            places = [n for n, (name, content) in enumerate(members) if name in LISTS and isinstance(content, bytes)]
            if places:
                place = draw(st.sampled_from(places))
                members[place] = (members[place][0], _changed(draw, members[place][1]))
        else:
            place = draw(st.integers(0, len(members) - 1))
            name, content = members[place]
            if kind == "drop":
                del members[place]
            elif kind == "twice":
                members.append((draw(st.sampled_from(members))[0], content))
            else:
                members[place] = (name, draw(st.sampled_from(["", "=", "/"])) + draw(st.sampled_from(members))[0])
        if not members:
            break
    return members


def _changed(draw: st.DrawFn, content: Any) -> bytes:
    try:
        document = [copy.deepcopy(json.loads(content))]
    except ValueError:
        return bytes(content)  # another member under a list's name
    holder: Any = document
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = draw(_VALUES)
    return json.dumps(document[0]).encode()


@fuzzed(150)
@given(_mutated())
def test_lists_of_contents(top: str, members: Members) -> None:
    said = ""
    try:
        found = received(top, pack(members))
    except (DataLossError, NotFoundError, UnimplementedError) as error:
        said = str(error)
    else:
        usable(found)
    assert not said or "the archive" in said


# --- bytes -----------------------------------------------------------------------------------------------------------


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


_PACKED = [form(pack(source)) for source in SOURCES for form in (bytes, _gzip)]


@fuzzed(150)
@given(
    st.sampled_from(_PACKED),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.none() | st.floats(0, 1),
    st.binary(max_size=8),
)
def test_bytes(top: str, data: bytes, flips: Sequence[tuple[float, int]], end: float | None, tail: bytes) -> None:
    broken = bytearray(data)
    for where, value in flips:
        broken[min(int(where * len(broken)), len(broken) - 1)] = value
    whole = bytes(broken if end is None else broken[: int(end * len(broken))]) + tail
    with contextlib.suppress(CrishimError):
        usable(received(top, whole))


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_changed_is_read(top: str, source: Members) -> None:
    found = received(top, pack(source))
    usable(found)
    assert NAME in {str(name) for image in found.images for name in image.names}


# --- instructions ----------------------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    ["CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR", "RUN"]
)
_TEXTS = st.text(st.sampled_from("abA1 \t\n=/-\\\"'[],{}:\0ü"), max_size=20) | st.text(max_size=10)


@fuzzed(300)
@given(st.lists(st.tuples(_WORDS, _TEXTS), max_size=3))
def test_instructions(instructions: Sequence[tuple[str, str]]) -> None:
    try:
        config = apply([f"{word} {text}" for word, text in instructions], "changes")
    except InvalidArgumentError:
        return
    assert json.loads(json.dumps(config)) == config
    for value in (*config.get("Env", []), *config.get("Cmd", [])):
        assert "\0" not in value
    assert all(Path(path).is_absolute() for path in (*config.get("Volumes", {}), config.get("WorkingDir", "/")))
