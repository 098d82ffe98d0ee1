"""argparse with our manners: an error is one line on standard error and exit status 2.

The flags of the configuration are made from the options' own documentation, so that they cannot differ from it.
"""

import argparse
import sys
from typing import Any, NoReturn

from crishim.config.load import OPTIONS, load_file
from crishim.config.model import DEFAULT_FILE, Config
from crishim.words import shown

USAGE_STATUS = 2


class Parser(argparse.ArgumentParser):
    """A parser for one command."""

    def error(self, message: str) -> NoReturn:
        """End with one line and status 2."""
        sys.stderr.write(f"{self.prog}: {shown(message)} (see '{self.prog} --help')\n")
        raise SystemExit(USAGE_STATUS)


def make(command: str, description: str) -> Parser:
    """Return the parser of a command; abbreviated flags are refused, so that a new flag breaks no script."""
    return Parser(prog=f"crishim {command}", description=description, allow_abbrev=False)


def add_config_flags(parser: argparse.ArgumentParser, names: frozenset[str] | None = None) -> None:
    """Add `--config` and a flag for each option that has one (or for those of `names`, by their dotted paths)."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"configuration (TOML); without it {DEFAULT_FILE}, where that exists"
    )
    for path, item in OPTIONS.items():
        if not item.spec.flag or (names is not None and path not in names):
            continue
        help_text = f"{item.spec.help} (default: {_shown(item.default)})".replace("%", "%%")
        parser.add_argument(
            item.spec.flag,
            dest=path,
            action="append" if item.is_list else "store",
            metavar=item.spec.flag.rpartition("-")[2].upper(),
            help=help_text + (" May be repeated." if item.is_list else ""),
        )


_ADDRESS = frozenset({"state", "socket"})


def add_socket_flags(parser: argparse.ArgumentParser) -> None:
    """Add what tells a client where its daemon serves."""
    add_config_flags(parser, _ADDRESS)


def add_format_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--format`."""
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="a table for people (the default), or JSON"
    )


def add_transfer_flags(parser: argparse.ArgumentParser) -> None:
    """Add what pull and push share."""
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--creds",
        metavar="USER:PASSWORD",
        help="for the registry, instead of docker's config.json ($DOCKER_CONFIG) or $REGISTRY_AUTH_FILE",
    )
    add_socket_flags(parser)


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that flags gave: dotted path → value."""
    return {path: value for path, value in vars(arguments).items() if path in OPTIONS and value is not None}


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the configuration that a command's flags describe; raises InvalidArgumentError."""
    return load_file(arguments.config, overrides(arguments))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value) if value != "" else "none"
