"""From TOML text and command-line flags to a `Config`, with every problem named by its line or flag.

Nothing is guessed: an unknown key, a wrong type or a value out of range is an error, and all problems are reported
at once, one a line: `FILE:LINE: KEY: what is wrong and what would be right`. Flags win over the file.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crishim.config import lines as toml_lines
from crishim.config.model import DEFAULT_FILE, Config, normal
from crishim.config.options import Option, entry_problem, problem, sections, walk
from crishim.errors import InvalidArgumentError
from crishim.words import unreadable

LARGEST_FILE = 1 << 20
"""A configuration is a page of text; anything above a MiB is another file given by mistake."""

Wrong = tuple[tuple[str, ...], str]
"""Path of a key and what is wrong with it; "" where no option has its name."""

OPTIONS: Mapping[str, Option] = {item.path: item for item in walk(Config)}
"""Every option by its dotted path, in the order of the default file."""


def load_file(path: str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a file; with None the default file where it exists, else the defaults.

    Args:
        path: the file as the user named it.
        overrides: option path → value, from flags; they win.

    Raises:
        InvalidArgumentError: the file cannot be read or something in it is wrong; one problem a line.
    """
    if path is None and not os.path.exists(DEFAULT_FILE):
        return load("", "", overrides)
    name = path if path is not None else DEFAULT_FILE
    return load(_read(name), name, overrides)


def load(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration that TOML text and overrides describe; `source` names the text in errors."""
    document = _parse(text, source) if text else {}
    given: dict[str, Any] = {}
    wrong: list[Wrong] = []
    _flatten(document, (), given, wrong)
    where = _Where(text, source, given, overrides or {})
    problems = [where.key(path, found) for path, found in wrong]
    given |= overrides or {}
    for path, value in given.items():
        found = problem(OPTIONS[path], value)
        if found:
            problems.append(where.option(path, found))
    if not problems:
        config = normal(_build(Config, "", given))
        problems = [where.option(path, found) for path, found in config.problems()]
        if not problems:
            return config
    raise InvalidArgumentError("", "\n".join(text for _, text in sorted(problems)))


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidArgumentError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise InvalidArgumentError(path, f"is larger than {LARGEST_FILE} bytes, which is no configuration")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidArgumentError(f"{path}:{line}", "is not UTF-8 text") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    import tomllib  # most instances are configured by flags alone, and start without it

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        at = re.search(r"\(at line (\d+)", str(error))
        raise InvalidArgumentError(f"{source}:{at[1]}" if at else source, unreadable(error, "TOML")) from None


def _flatten(table: Mapping[str, Any], path: tuple[str, ...], given: dict[str, Any], wrong: list[Wrong]) -> None:
    names = sections(Config)
    for key, value in table.items():
        inner = (*path, key)
        item = OPTIONS.get(".".join(inner)) if "." not in key else None
        if not path and key in names and isinstance(value, dict):
            _flatten(value, inner, given, wrong)
        elif item is None:
            wrong.append((inner, ""))
        elif item.spec.table and isinstance(value, dict):
            given[item.path] = tuple(value)
            wrong += _wrong_entries(item, inner, value)
        else:
            given[item.path] = value


def _wrong_entries(item: Option, path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Wrong]:
    """Yield what is wrong in a table of names, each with the path of the line that it stands on."""
    for name, entry in table.items():
        found = entry_problem(item, name, entry)
        if found:
            yield (*path, name), found
        elif entry:
            yield from (((*path, name, key), f"unknown key, [{item.path}.{name}] has none yet") for key in entry)


def _build(kind: type[Any], prefix: str, given: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {
        name: _build(inner, f"{prefix}{name}.", given) for name, (inner, _) in sections(kind).items()
    }
    for path, value in given.items():
        head, _, name = path.rpartition(".")
        if head == prefix.rstrip("."):
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


class _Where:
    """Turns a problem into (order, line of text), naming the flag or the file's line that it comes from."""

    def __init__(self, text: str, source: str, written: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self._lines = toml_lines.key_lines(text)
        self._source = source
        self._written = frozenset(written)
        self._overrides = frozenset(overrides)

    def option(self, path: str, found: str) -> tuple[int, str]:
        if path in self._overrides:
            return 0, f"{OPTIONS[path].spec.flag or path}: {found}"
        if path not in self._written:
            return 0, f"{path}: {found}"
        return self._at(tuple(path.split(".")), f"{path}: {found}")

    def key(self, path: tuple[str, ...], found: str) -> tuple[int, str]:
        """A problem of a place in the file that is no option; "" means that there is no such key."""
        name = ".".join(path)
        if found:
            return self._at(path, f"{name}: {found}")
        if len(path) == 1 and name in sections(Config):
            return self._at(path, f"{name}: is a section, write [{name}] and its keys below it")
        return self._at(path, f"{name}: unknown key{_hint(name)}")

    def _at(self, path: tuple[str, ...], text: str) -> tuple[int, str]:
        line = toml_lines.find(self._lines, path)
        return line, f"{self._source}:{line}: {text}"


def _hint(name: str) -> str:
    """Return `, did you mean X?` for the nearest option, be it in another section; "" if none is near."""
    import difflib  # only for an error

    last = name.rpartition(".")[2]
    same = [path for path in OPTIONS if path.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(name, [*OPTIONS, *sections(Config)], n=1, cutoff=0.6)
    if not near:
        tails = {path.rpartition(".")[2]: path for path in OPTIONS}
        near = [tails[tail] for tail in difflib.get_close_matches(last, tails, n=1, cutoff=0.6)]
    return f", did you mean {near[0]!r}?" if near else ", see 'crishim config default'"


def changes(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the options that differ: (those that a reload applies, those that need a restart)."""
    differ = [path for path in OPTIONS if value(old, path) != value(new, path)]
    live = tuple(path for path in differ if OPTIONS[path].spec.reload)
    return live, tuple(path for path in differ if not OPTIONS[path].spec.reload)


def merged(old: Config, new: Config, paths: Iterable[str]) -> Config:
    """Return `old` with the values that `new` has for some options."""
    taken = frozenset(paths)
    merge: Config = _build(Config, "", {path: value(new if path in taken else old, path) for path in OPTIONS})
    return merge


def value(config: Config, path: str) -> Any:
    """Return the value of an option by its dotted path."""
    item: Any = config
    for name in path.split("."):
        item = getattr(item, name)
    return item
