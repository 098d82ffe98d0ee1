"""`crishim serve`: run the daemon in the foreground."""

from collections.abc import Sequence

from crishim.cli import parser


def run(words: Sequence[str]) -> int:
    """Read the configuration and serve until a signal ends the daemon."""
    command = parser.make("serve", "Run the daemon in the foreground: it serves the CRI on a unix socket.")
    parser.add_config_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim.daemon.app import serve

    return serve(config, arguments.config, parser.overrides(arguments))
