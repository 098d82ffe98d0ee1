"""Gate on what the sources say of each other: every module, class, function, file and section that is named exists.

In docstrings, comments and the documents, a name in backticks that begins with one of the packages, or with a module
beside the one that it stands in, must lead to something; so must a file's name. No code of a catalogue that the
repository does not have may stand there.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.unit.test_gates_sources import ROOT, relative, sources

CATALOGUE = re.compile(r"[Ff]ield cases? |\((?:see |cf\. )?[A-L]\d{1,2}(?:, [A-L]\d{1,2})*\)")
TICKED = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+")
FILE = re.compile(r"(?:[\w.-]+/)*[\w-]+\.(?:py|md|sql|proto|toml|json|c|txt|sh)")
KERNEL = {"devices.allow", "devices.deny"}
"""Control files that are called like modules."""
FOREIGN_FILES = {
    "index.json", "manifest.json", "hosts.toml", "config.json", "config.toml", "auth.json", "oci-layout.json",
    "image-layout.md", "image-index.md", "config.md", "config-linux.md", "layer.md", "spec.md", "manifest.md",
}  # fmt: skip
"""Names of files that others define: OCI's, docker's, containerd's, and the specifications' own."""


def modules() -> dict[str, Path]:
    """Return every module and package of the product by its dotted name without `crishim.`."""
    found = {}
    for path in (ROOT / "crishim").rglob("*.py"):
        if "_proto" not in path.parts:
            parts = path.relative_to(ROOT / "crishim").with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TOP = {name.partition(".")[0] for name in MODULES} - {""}


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """Return all names that a module defines, imports or uses as attributes of its classes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return frozenset(found)


@functools.cache
def files() -> frozenset[str]:
    """Return every file's path and all its tails, like `linux/calls.py` and `calls.py`."""
    found: set[str] = set()
    for path in ROOT.rglob("*"):
        if path.is_file() and not {".git", ".cache", "__pycache__"} & set(path.parts):
            parts = path.relative_to(ROOT).parts
            found.update("/".join(parts[n:]) for n in range(len(parts)))
    return frozenset(found)


@functools.cache
def protocol() -> frozenset[str]:
    """Return every word of the protocols."""
    return frozenset(
        word for path in sources(".proto") for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    )


def is_there(name: str, home: str) -> bool:
    """Tell whether a dotted name leads to something, seen from the package `home`."""
    parts = name.removeprefix("crishim.").split(".")
    for prefix in (home, ""):
        for length in range(len(parts), 0, -1):
            module = ".".join(filter(None, (prefix, *parts[:length])))
            if module in MODULES and set(parts[length:]) <= names_in(MODULES[module]):
                return True
    return parts[0] == "v1" and parts[-1] in protocol()


def is_reference(name: str, home: str) -> bool:
    """Tell whether a dotted name means something of ours: it begins with a package, or with a module beside it."""
    first = name.removeprefix("crishim.").partition(".")[0]
    beside = ".".join(filter(None, (home, first)))
    return name.startswith("crishim.") or first in TOP or beside in MODULES


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of a file's comments and docstrings; all of it for a document."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
            yield from enumerate(token.string.splitlines(), token.start[0])


def dead(path: Path) -> Iterator[str]:
    """Yield the references of a file that lead nowhere."""
    parts = path.relative_to(ROOT).parts
    home = ".".join(parts[1:-1]) if parts[0] == "crishim" else ""
    for number, line in prose(path):
        if CATALOGUE.search(line):
            yield f"{relative(path)}:{number}: a code of a catalogue: {line.strip()}"
        for word in TICKED.findall(line):
            if FILE.fullmatch(word):
                if word not in files() and word not in FOREIGN_FILES:
                    yield f"{relative(path)}:{number}: no such file: {word}"
            elif DOTTED.fullmatch(word) and is_reference(word, home) and not is_known(word, home):
                yield f"{relative(path)}:{number}: leads nowhere: {word}"


@functools.cache
def option_names() -> frozenset[str]:
    """Return the dotted names of all options, and of fields of requests, which look like modules."""
    from crishim.config.load import OPTIONS

    return frozenset(OPTIONS)


def is_option(word: str) -> bool:
    """Tell whether a dotted name is an option's or a request's field's."""
    return word in option_names() or word.startswith("config.")


def is_known(word: str, home: str) -> bool:
    """Tell whether a dotted name is a place of ours, an option, a field, or a control file of the kernel's."""
    return word in KERNEL or is_option(word) or is_there(word, home)


def test_what_the_sources_name_exists() -> None:
    found = [place for path in sources(".py", ".md") if path != Path(__file__) for place in dead(path)]
    assert found == []
