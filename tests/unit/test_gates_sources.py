"""Gates on the sources themselves: sizes, reasons for exceptions, no notes of unfinished work, documents that hold."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.config.model import Config
from crishim.config.render import default_text

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 500
SKIPPED = {".git", ".cache", "_proto", "data", "golden", "__pycache__", "build", "dist"}
CODE = {".py", ".sh", ".c", ".toml", ".sql", ".service", ".yaml", ".md", ""}


def sources(*suffixes: str) -> Iterator[Path]:
    """Yield the project's own files with one of the suffixes; the checkout need not be a repository."""
    for parent, folders, names in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in SKIPPED and not f.startswith(".") and "egg-info" not in f)
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix in suffixes and name != "LICENSE":
                yield path


def relative(path: Path) -> str:
    """Return a path as reports show it."""
    return str(path.relative_to(ROOT))


def test_no_file_is_longer_than_a_person_reads() -> None:
    sizes = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*CODE)}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}


def bare_exceptions(path: Path) -> Iterator[str]:
    """Yield the places where a rule is left out without a reason, there or at an earlier place in the same file."""
    explained: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.search(r"#\s*noqa(?!:)|#\s*type: ignore(?!\[)", line):
            yield f"{relative(path)}:{number}"
        found = re.search(r"#\s*noqa: ([A-Z0-9]+(?:, ?[A-Z0-9]+)*)(.*)$", line)
        if found:
            codes = set(re.split(r", ?", found[1]))
            if found[2].strip():
                explained |= codes
            elif not codes <= explained:
                yield f"{relative(path)}:{number}"


def test_exceptions_from_the_rules_give_a_reason() -> None:
    found = [place for path in sources(".py") if path != Path(__file__) for place in bare_exceptions(path)]
    assert found == []


def test_no_note_of_unfinished_work_is_left() -> None:
    note = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")))
    found = [relative(path) for path in sources(*CODE) if note.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    silent = []
    for path in sources(".py"):
        text = path.read_text(encoding="utf-8")
        if text.strip() and path.name != "__init__.py" and '"""' not in "\n".join(text.splitlines()[:3]):
            silent.append(relative(path))
    assert silent == []


def test_packages_of_the_product_import_nothing_by_themselves() -> None:
    full = []
    for path in sources(".py"):
        if path.name == "__init__.py" and "crishim" in path.relative_to(ROOT).parts[:1]:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            if [node for node in body if not isinstance(node, ast.Expr)]:
                full.append(relative(path))
    assert full == []


@pytest.mark.parametrize("name", ["quickstart", "test", "install", "lint", "lib.sh"])
def test_scripts_are_bash_that_parses(name: str) -> None:
    path = ROOT / "scripts" / name
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).stderr == b""
    assert name == "lib.sh" or os.access(path, os.X_OK)


def test_ci_runs_exactly_the_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ['exec "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/test"']


def test_links_of_the_documents_lead_somewhere() -> None:
    dead = [
        f"{relative(path)}: {target}"
        for path in sources(".md")
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert dead == []


def options(config: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all options."""
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_option_stands_in_the_default_file_with_its_meaning() -> None:
    lines = default_text().splitlines()
    for name in options(Config()):
        leaf = name.rpartition(".")[2]
        form = rf"#?\s*(?:{leaf} = |\[{re.escape(name)}\.NAME\])"  # a table of names is shown by a header
        places = [n for n, line in enumerate(lines) if re.match(form, line)]
        assert places, name
        assert all(re.match(r"# \S", lines[n - 1]) for n in places), name


def test_dependencies_have_lower_bounds_and_cover_the_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert [item for item in wanted if ">=" not in item] == []
    provided = {"grpcio": "grpc", "prometheus-client": "prometheus_client", "protobuf": "google"}
    names = {re.split(r"[>=\[ ]", item)[0] for item in project["dependencies"]}
    modules = {provided.get(name, name.replace("-", "_")) for name in names}
    assert third_party_imports() - modules == set()


def third_party_imports() -> set[str]:
    """Return the top-level modules that crishim imports and that are neither its own nor the standard library's."""
    found: set[str] = set()
    for path in sources(".py"):
        if "crishim" not in path.relative_to(ROOT).parts[:1]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"crishim"}
