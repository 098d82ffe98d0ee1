"""How one option of the configuration is declared: a dataclass field whose metadata says everything about it.

The commented default file, `config show`, the flags of `serve` and every error derive from what stands here, so
that an option is documented once. Reading files is the subject of `load`, the options themselves of `model`.

The types that an option may have are those of `FORMS`, and no others: text, numbers and booleans, `tuple[str, ...]` for
a TOML list of strings, and the same with `Spec(table=True)` for a TOML table of names.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Check = Callable[[Any], str]
"""Returns what is wrong with a value, as the rest of a sentence, or "" if it is right."""

FORMS: Mapping[Any, str] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    float: "a number",
    tuple[str, ...]: "a list of strings",
}
"""The types of options, and what errors call them."""

_OPTION = "option"

SECTION = "section"
"""Key of the metadata of a field that holds another class of options: the comment above the section's header."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """What is known of an option beside its name, type and default.

    Attributes:
        help: one or more sentences for the default file; they name the unit and the special values.
        flag: the command-line flag of `serve` that overrides it, or "".
        choices: the only values allowed, if any.
        minimum: least number allowed.
        maximum: greatest number allowed.
        reload: whether SIGHUP applies a change at once; other options need a restart.
        check: a check of each value (of each item, in a list; of each name, in a table).
        table: the value is a table of names, and each of them a table of its own, which has no keys yet: TOML
            `[path.NAME]`. The configuration holds the names.
    """

    help: str
    flag: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    reload: bool = False
    check: Check | None = None
    table: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One option of a class of the configuration; `path` is its dotted name, like `network.bridge`."""

    path: str
    kind: Any
    default: Any
    spec: Spec

    @property
    def is_list(self) -> bool:
        """Whether the value is a list of strings in TOML, and its flag may be repeated."""
        return self.kind == tuple[str, ...] and not self.spec.table


def option(default: Any, spec: Spec) -> Any:
    """Declare an option as a field of a frozen dataclass."""
    return dataclasses.field(default=default, metadata=types.MappingProxyType({_OPTION: spec}))


def sections(kind: type[Any]) -> dict[str, tuple[type[Any], str]]:
    """Return the sections of a configuration class: name → (class, comment)."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return {f.name: (hints[f.name], f.metadata[SECTION]) for f in fields if SECTION in f.metadata}


def walk(kind: type[Any], prefix: str = "") -> Iterator[Option]:
    """Yield every option below a configuration class, its own first and then those of its sections, in order."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if _OPTION in field.metadata:
            if hints[field.name] not in FORMS:
                raise TypeError(f"{prefix}{field.name}: options of type {hints[field.name]} are not known (FORMS)")
            yield Option(prefix + field.name, hints[field.name], field.default, field.metadata[_OPTION])
    for name, (inner, _) in sections(kind).items():
        yield from walk(inner, f"{prefix}{name}.")


def entry_problem(item: Option, name: str, value: Any) -> str:
    """Return what is wrong with one name of a table and what stands below it, but for its keys."""
    if not isinstance(value, dict):
        return f"must be a table, write [{item.path}.{name}]"
    return _constraint(item.spec, name)


def problem(item: Option, value: Any) -> str:
    """Return what is wrong with a value of an option, or "" if nothing is; the names of a table have been checked."""
    if item.spec.table:
        return "" if isinstance(value, tuple) else f"must be a table of names, write [{item.path}.NAME]"
    if item.is_list:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            return f"must be a list of strings, is {value!r}"
        return next((found for v in value if (found := _constraint(item.spec, v))), "")
    wanted = (int, float) if item.kind is float else (item.kind,)
    if type(value) not in wanted:
        return f"must be {FORMS[item.kind]}, is {value!r}"
    return _constraint(item.spec, value)


def _constraint(spec: Spec, value: Any) -> str:
    if spec.choices and value not in spec.choices:
        return f"must be one of {', '.join(spec.choices)}, is {value!r}"
    if spec.minimum is not None and value < spec.minimum:
        return f"must be at least {spec.minimum}, is {value}"
    if spec.maximum is not None and value > spec.maximum:
        return f"must be at most {spec.maximum}, is {value}"
    return spec.check(value) if spec.check is not None else ""
