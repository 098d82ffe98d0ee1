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
        inner = [_option(config, item) for item in OPTIONS.values() if item.path.startswith(f"{name}.")]
        blocks.append("\n\n".join((f"# {text}\n[{name}]", *inner)))
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
    name = item.path.rpartition(".")[2]
    return "\n".join([*(f"# {line}" for line in comment), f"{name} = {_toml(value(config, item.path))}"])


def _toml(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, tuple):
        return f"[{', '.join(_toml(inner) for inner in item)}]"
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(item)
