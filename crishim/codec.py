"""Frozen dataclasses to JSON values and back: one versioned codec for plans, records and messages.

A dataclass becomes an object of its fields in order; tuples become arrays; bytes become base64 text; enums become
their value; a tagged union (fields typed `A | B | …` of dataclasses) becomes an object with a `"type"` key that
holds the class's name. Fields that equal their default are left out, so records stay small and a field that a
newer version adds reads as its default from an older record. Unknown keys are an error: a document of a newer
version is refused, not half read. Decoders are built once per class and cached.
"""

import base64
import dataclasses
import enum
import json
import operator
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from crishim.words import unreadable

T = TypeVar("T")


class CodecError(ValueError):
    """A document does not fit its class; the message names the path."""


def to_value(item: Any, *, full: bool = False) -> Any:
    """Return the JSON value of a dataclass (or of anything it may hold).

    Args:
        item: what to encode.
        full: also write the fields that equal their default, for readers that know no defaults (the executor).
    """
    kind: Any = type(item)
    return item if kind in _PLAIN else _encoder(kind)(item, full)


_PLAIN = frozenset({str, int, float, bool, type(None)})
Encoder = Callable[[Any, bool], Any]


@cache
def _encoder(kind: Any) -> Encoder:
    """Return the encoder of a class, which is looked at only once: plans are encoded on the way of every start."""
    if issubclass(kind, enum.Enum):
        return lambda item, _full: item.value
    if issubclass(kind, str | int | float):
        return lambda item, _full: item
    if issubclass(kind, bytes):
        return lambda item, _full: base64.b64encode(item).decode("ascii")
    if issubclass(kind, tuple | list):
        return lambda item, full: [to_value(i, full=full) for i in item]
    if issubclass(kind, Mapping):
        return lambda item, full: {key: to_value(value, full=full) for key, value in item.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass_encoder(kind)
    raise CodecError(f"cannot encode a {kind.__name__}")


def _dataclass_encoder(kind: Any) -> Encoder:
    head = {"type": kind.__name__} if _is_tagged(kind) else {}
    fields = _defaults(kind)
    read = operator.attrgetter(*(name for name, _ in fields)) if len(fields) > 1 else None

    def encode(item: Any, full: bool) -> Any:
        document: dict[str, Any] = head.copy()
        values = read(item) if read else [getattr(item, name) for name, _ in fields]
        for (name, default), value in zip(fields, values, strict=True):
            if full or default is dataclasses.MISSING or value != default:
                own: Any = type(value)
                document[name] = value if own in _PLAIN else _encoder(own)(value, full)
        return document

    return encode


def from_value(kind: type[T], value: Any) -> T:
    """Return the `kind` that `value` describes.

    Raises:
        CodecError: the value does not fit; the message starts with the path of the field.
    """
    decode: Decoder = _decoder(typing.cast("Any", kind))
    result: T = decode(value, kind.__name__)
    return result


def dumps(item: Any) -> bytes:
    """Return compact JSON of a dataclass."""
    return json.dumps(to_value(item), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


def frozen(item: Any) -> bytes:
    """Return the full JSON of a dataclass in ASCII, to be sent as it is and read by who knows no defaults."""
    return json.dumps(to_value(item, full=True), separators=(",", ":")).encode("ascii")


def loads(kind: type[T], data: bytes | str) -> T:
    """Parse JSON into a dataclass."""
    text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CodecError(f"{kind.__name__}: {unreadable(error)}") from None
    return from_value(kind, value)


def tagged(kind: type[T]) -> type[T]:
    """Class decorator: members of a union carry their class's name in the document."""
    kind.__codec_tagged__ = True  # type: ignore[attr-defined]
    return kind


def _is_tagged(kind: type) -> bool:
    return bool(getattr(kind, "__codec_tagged__", False))


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    result = []
    for field in dataclasses.fields(kind):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        result.append((field.name, default))
    return tuple(result)


Decoder = Callable[[Any, str], Any]


@cache
def _decoder(kind: Any) -> Decoder:
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if kind is Any:
        return lambda value, _path: value
    if kind is type(None):
        return _none
    if origin is typing.Union or origin is types.UnionType:
        return _union(args)
    if origin is tuple:
        return _sequence(args[0]) if args[-1] is Ellipsis else _fixed(args)
    if origin is dict or origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _mapping(args[1])
    if kind is bytes:
        return _bytes
    if kind is float:
        return _float
    if kind in (str, int, bool):
        return _scalar(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type", kind))
    raise CodecError(f"no codec for {kind!r}")


def _none(value: Any, path: str) -> None:
    if value is not None:
        raise CodecError(f"{path}: must be null")


def _bytes(value: Any, path: str) -> bytes:
    if not isinstance(value, str):
        raise CodecError(f"{path}: must be base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise CodecError(f"{path}: must be base64 text") from None


def _float(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CodecError(f"{path}: must be a number")
    return float(value)


def _scalar(kind: type) -> Decoder:
    def decode(value: Any, path: str) -> Any:
        if type(value) is not kind:
            raise CodecError(f"{path}: must be a {kind.__name__}, is {value!r}")
        return value

    return decode


def _enum(kind: type[enum.Enum]) -> Decoder:
    def decode(value: Any, path: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise CodecError(f"{path}: {value!r} is no {kind.__name__}") from None

    return decode


def _sequence(item: Any) -> Decoder:
    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple):
            raise CodecError(f"{path}: must be an array")
        inner = _decoder(item)
        return tuple(inner(v, f"{path}[{n}]") for n, v in enumerate(value))

    return decode


def _fixed(items: tuple[Any, ...]) -> Decoder:
    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(items):
            raise CodecError(f"{path}: must be an array of {len(items)}")
        return tuple(_decoder(i)(v, f"{path}[{n}]") for n, (i, v) in enumerate(zip(items, value, strict=True)))

    return decode


def _mapping(item: Any) -> Decoder:
    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise CodecError(f"{path}: must be an object")
        inner = _decoder(item)
        return {key: inner(v, f"{path}.{key}") for key, v in value.items()}

    return decode


def _union(args: tuple[Any, ...]) -> Decoder:
    named = {a.__name__: a for a in args if isinstance(a, type) and _is_tagged(a)}
    plain = [a for a in args if a is not type(None) and a not in named.values()]
    optional = type(None) in args

    def decode(value: Any, path: str) -> Any:
        if value is None and optional:
            return None
        if isinstance(value, Mapping) and value.get("type") in named:
            return _decoder(named[value["type"]])(value, path)
        if len(plain) == 1:
            return _decoder(plain[0])(value, path)
        raise CodecError(f"{path}: must be one of {', '.join(named) or plain}")

    return decode


def _dataclass(kind: type) -> Decoder:
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    required = {n for n, default in _defaults(kind) if default is dataclasses.MISSING}
    tag = kind.__name__ if _is_tagged(kind) else None

    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise CodecError(f"{path}: must be an object")
        fields = {}
        for key, inner in value.items():
            if key == "type" and tag is not None:
                continue
            if key not in names:
                raise CodecError(f"{path}.{key}: unknown key")
            fields[key] = _decoder(hints[key])(inner, f"{path}.{key}")
        missing = required - fields.keys()
        if missing:
            raise CodecError(f"{path}.{min(missing)}: is missing")
        return kind(**fields)

    return decode
