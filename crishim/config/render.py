"""A configuration as commented TOML: the default file, and the effective settings of an instance.

What is written here, `load` reads back as the same configuration.
"""

import json
import textwrap
from typing import Any

from crishim.config.load import OPTIONS, value
from crishim.config.model import Config
from crishim.config.options import Option, sections

_WIDTH = 100


def render(config: Config) -> str:
    """Return TOML with each option's documentation above it; the sections follow the options without one."""
    blocks = [_option(config, item) for item in OPTIONS.values() if "." not in item.path]
    for name, (_, text) in sections(Config).items():
        inner = [item for item in OPTIONS.values() if item.path.startswith(f"{name}.")]
        inner.sort(key=lambda item: item.spec.table)  # a table's header ends its section
        blocks.append("\n\n".join((f"# {text}\n[{name}]", *(_option(config, item) for item in inner))))
    return "\n\n".join(blocks) + "\n"


def default_text() -> str:
    """Return the commented default file, as `crishim config default` prints it."""
    return (
        "# The configuration of crishim: every option with its default value.\n"
        "# Options marked [reload] take effect on SIGHUP, the others with a restart.\n\n" + render(Config())
    )


def _option(config: Config, item: Option) -> str:
    spec = item.spec
    text = spec.help
    if spec.choices:
        text += f" One of: {', '.join(spec.choices)}."
    if spec.minimum is not None and spec.maximum is not None:
        text += f" From {spec.minimum} to {spec.maximum}."
    notes = [f"Flag: {spec.flag}."] if spec.flag else []
    notes += ["[reload]"] if spec.reload else []
    comment = textwrap.wrap(" ".join((text, *notes)), _WIDTH, break_long_words=False, break_on_hyphens=False)
    name, given = item.path.rpartition(".")[2], value(config, item.path)
    lines = _headers(item, given) if spec.table else [f"{name} = {_toml(given)}"]
    return "\n".join([*(f"# {line}" for line in comment), *lines])


def _headers(item: Option, names: tuple[str, ...]) -> list[str]:
    """Return a table of names: a header for each, or how one would look where there is none."""
    return [f"[{item.path}.{name}]" for name in names] or [f"# [{item.path}.NAME]"]


def _toml(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, tuple):
        return f"[{', '.join(_toml(inner) for inner in item)}]"
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(item)
