"""The codec: what is written reads back the same, and a document that does not fit is refused by its path."""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim import codec, request
from crishim.codec import CodecError, tagged
from crishim.engine.plan import types


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@tagged
@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float


@tagged
@dataclasses.dataclass(frozen=True)
class Square:
    side: int = 1


@dataclasses.dataclass(frozen=True)
class Plain:
    name: str


@dataclasses.dataclass(frozen=True)
class Everything:
    text: str
    number: int = 0
    flag: bool = False
    ratio: float = 0.5
    data: bytes = b""
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    words: tuple[str, ...] = ()
    pair: tuple[str, int] = ("", 0)
    shapes: tuple[Circle | Square, ...] = ()
    maybe: Plain | None = None
    shape: Circle | Square | None = None
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)
    anything: Any = None


text = st.text()
plain = st.builds(Plain, text)
shape = st.one_of(st.builds(Circle, st.floats(allow_nan=False)), st.builds(Square, st.integers()))
everything = st.builds(
    Everything,
    text,
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.binary(),
    st.sampled_from(Colour),
    st.sampled_from(Level),
    st.lists(text).map(tuple),
    st.tuples(text, st.integers()),
    st.lists(shape).map(tuple),
    st.none() | plain,
    st.none() | shape,
    st.dictionaries(text, st.integers()),
    st.none() | st.booleans() | text | st.lists(st.integers()),
)


@given(everything)
def test_round_trip(item: Everything) -> None:
    assert codec.from_value(Everything, codec.to_value(item)) == item
    assert codec.from_value(Everything, codec.to_value(item, full=True)) == item
    assert codec.loads(Everything, codec.dumps(item)) == item
    assert codec.loads(Everything, codec.dumps(item).decode()) == item


@given(everything)
def test_full_values_are_json_with_every_field(item: Everything) -> None:
    value = codec.to_value(item, full=True)
    assert list(value) == [field.name for field in dataclasses.fields(Everything)]
    assert json.loads(json.dumps(value)) == value


def test_defaults_are_left_out() -> None:
    assert codec.to_value(Everything("x")) == {"text": "x"}
    assert codec.to_value(Everything("x", shape=Square())) == {"text": "x", "shape": {"type": "Square"}}
    assert codec.to_value(Everything("x", data=b"\xff\0")) == {"text": "x", "data": "/wA="}


def test_file_names_that_are_no_utf8_survive() -> None:
    item = Plain(b"/srv/\xff".decode("utf-8", "surrogateescape"))
    assert codec.loads(Plain, codec.dumps(item)) == item
    assert b"\xff" in codec.dumps(item)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({}, "Everything.text: is missing"),
        ({"text": 1}, "Everything.text: must be a str, is 1"),
        ({"text": "", "number": True}, "Everything.number: must be a int, is True"),
        ({"text": "", "number": 1.0}, "Everything.number: must be a int, is 1.0"),
        ({"text": "", "flag": 1}, "Everything.flag: must be a bool, is 1"),
        ({"text": "", "ratio": "1"}, "Everything.ratio: must be a number"),
        ({"text": "", "ratio": True}, "Everything.ratio: must be a number"),
        ({"text": "", "data": "?"}, "Everything.data: must be base64 text"),
        ({"text": "", "data": 5}, "Everything.data: must be base64 text"),
        ({"text": "", "colour": "green"}, "Everything.colour: 'green' is no Colour"),
        ({"text": "", "level": 3}, "Everything.level: 3 is no Level"),
        ({"text": "", "words": "abc"}, "Everything.words: must be an array"),
        ({"text": "", "words": ["a", 2]}, "Everything.words[1]: must be a str, is 2"),
        ({"text": "", "pair": ["a"]}, "Everything.pair: must be an array of 2"),
        ({"text": "", "pair": ["a", "b"]}, "Everything.pair[1]: must be a int, is 'b'"),
        ({"text": "", "shapes": [{"type": "Square", "sides": 4}]}, "Everything.shapes[0].sides: unknown key"),
        ({"text": "", "shapes": [{"type": "Circle"}]}, "Everything.shapes[0].radius: is missing"),
        ({"text": "", "shapes": [{"type": "Star"}]}, "Everything.shapes[0]: must be one of Circle, Square"),
        ({"text": "", "shapes": [{}]}, "Everything.shapes[0]: must be one of Circle, Square"),
        ({"text": "", "maybe": {"name": "", "age": 3}}, "Everything.maybe.age: unknown key"),
        ({"text": "", "maybe": {"type": "Plain", "name": ""}}, "Everything.maybe.type: unknown key"),
        ({"text": "", "table": {"a": "b"}}, "Everything.table.a: must be a int, is 'b'"),
        ({"text": "", "table": []}, "Everything.table: must be an object"),
        ({"text": "", "newer": 1}, "Everything.newer: unknown key"),
        ([], "Everything: must be an object"),
    ],
)
def test_refusals_name_the_path(document: object, path: str) -> None:
    with pytest.raises(CodecError) as caught:
        codec.from_value(Everything, document)
    assert str(caught.value) == path


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(CodecError, match="cannot encode a object"):
        codec.to_value(object())
    with pytest.raises(CodecError, match="not JSON"):
        codec.loads(Plain, b"{")

    @dataclasses.dataclass(frozen=True)
    class Odd:
        many: set[int]

    with pytest.raises(CodecError, match="no codec for"):
        codec.from_value(Odd, {"many": []})


def test_whole_numbers_serve_as_floats() -> None:
    assert codec.from_value(Circle, {"type": "Circle", "radius": 2}) == Circle(2.0)
    assert math.isinf(codec.loads(Circle, codec.dumps(Circle(math.inf))).radius)


@pytest.mark.parametrize(
    "kind", [types.ContainerPlan, types.PodPlan, types.ExecPlan, request.ContainerConfig, request.SandboxConfig]
)
def test_plans_and_requests_have_a_codec(kind: type) -> None:
    with pytest.raises(CodecError, match=r"is missing$"):
        codec.from_value(kind, {})
