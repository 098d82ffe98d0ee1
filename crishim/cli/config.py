"""`crishim config default|show|check`: the configuration, commented, effective, or judged."""

from collections.abc import Sequence

from crishim.cli import parser
from crishim.config.load import load_file
from crishim.config.render import default_text, render


def run(words: Sequence[str]) -> int:
    """Print what was asked for; a wrong configuration is an InvalidArgumentError."""
    command = parser.make("config", "The configuration: every option with its documentation.")
    kinds = command.add_subparsers(dest="kind", metavar="default|show|check", required=True)
    kinds.add_parser("default", help="print the default file, commented", allow_abbrev=False)
    show = kinds.add_parser("show", help="print the effective configuration of a file and flags", allow_abbrev=False)
    parser.add_config_flags(show)
    check = kinds.add_parser("check", help="read a file and report every problem by its line", allow_abbrev=False)
    check.add_argument("file", nargs="?", metavar="FILE", help="the file; without it the one that 'serve' would read")
    arguments = command.parse_args(words)
    if arguments.kind == "default":
        print(default_text(), end="")
    elif arguments.kind == "show":
        print(render(parser.config_of(arguments)), end="")
    else:
        load_file(arguments.file)
        print(f"{arguments.file or 'configuration'}: ok")
    return 0
