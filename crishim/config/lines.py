"""On which line of a TOML file a key stands; tomllib itself does not tell.

For text that tomllib has accepted: then a scan of strings, brackets and comments is enough to tell keys from
values. Keys within an inline table are not listed; `find` gives the line of the table instead.
"""

import re
from typing import Any

Path = tuple[str, ...]

_PIECE = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # a string of several lines
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|.",
    re.DOTALL,
)
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of each table header and each key: path → line. The first place counts."""
    lines: dict[Path, int] = {}
    table: Path = ()
    position, line = 0, 1
    while position < len(text):
        char = text[position]
        end = position + 1
        if char == "[":
            end = _until(text, position, "\n")
            table = _key(_header(text[position:end]))
            lines.setdefault(table, line)
        elif char == "#":
            end = _until(text, position, "\n")
        elif not char.isspace():
            equals = _until(text, position, "=")
            path = table + _key(text[position:equals])
            for length in range(len(table) + 1, len(path) + 1):
                lines.setdefault(path[:length], line)
            end = _value_end(text, equals + 1)
        line += text.count("\n", position, end)
        position = end
    return lines


def find(lines: dict[Path, int], path: Path) -> int:
    """Return the line of a path or of the nearest table above it; 1 if there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _until(text: str, position: int, stop: str) -> int:
    """Return the position of `stop` outside of quotes, or the text's end."""
    while position < len(text) and text[position] != stop:
        quoted = _QUOTED.match(text, position)
        position = quoted.end() if quoted else position + 1
    return position


def _header(text: str) -> str:
    depth = 2 if text.startswith("[[") else 1
    return text[depth : _until(text, depth, "]")]


def _key(text: str) -> Path:
    """Return the parts of a dotted key; tomllib knows best how quoted ones read."""
    import tomllib  # loaded already, where there is a key

    value: Any = tomllib.loads(f"{text.strip()} = 0")
    parts: list[str] = []
    while isinstance(value, dict):
        name = next(iter(value))
        parts.append(name)
        value = value[name]
    return tuple(parts)


def _value_end(text: str, position: int) -> int:
    """Return where the value that starts at `position` ends: at the first newline outside of strings and brackets."""
    depth = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        assert match is not None
        piece = match.group()
        if piece == "\n" and depth == 0:
            return position
        if piece in {"[", "{"}:
            depth += 1
        elif piece in {"]", "}"}:
            depth -= 1
        position = match.end()
    return position
