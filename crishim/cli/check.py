"""`crishim check`: what this host can and lacks, each with the remedy; exit status 1 if the daemon cannot serve.

Looking changes nothing and needs no daemon. Run as root it tries a small layer and a small container too.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from crishim.cli import parser
from crishim.config.model import Config

NAMES = frozenset({"root", "state", "cgroup_parent", "network.bridge", "network.subnets"})


def run(words: Sequence[str]) -> int:
    """Print the findings; return 1 if one of them keeps the daemon from serving."""
    command = parser.make("check", "Show what this host can and lacks for crishim, each with the remedy.")
    command.add_argument("--json", action="store_true", help="print the findings as a JSON array")
    parser.add_config_flags(command, NAMES)
    arguments = command.parse_args(words)
    found, serves = judge(parser.config_of(arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(table(found))
        print("\nthis host can serve" if serves else "\nthis host cannot serve: see the errors above")
    return 0 if serves else 1


def judge(config: Config) -> tuple[list[dict[str, str]], bool]:
    """Return the findings as plain objects, and whether the daemon can serve."""
    from crishim.daemon.check import cannot_serve, findings
    from crishim.daemon.surroundings import look
    from crishim.daemon.trial import attempt
    from crishim.linux.facts import probe

    facts = probe()
    found = findings(facts, config, replace(look(config), trial=attempt(config, facts)))
    rows = [{"name": f.name, "level": f.level, "detail": f.detail, "remedy": f.remedy} for f in found]
    return rows, not cannot_serve(found)


def table(found: Sequence[dict[str, str]]) -> str:
    """Return the findings as aligned lines, each remedy below its finding."""
    width = max(len(row["name"]) for row in found)
    lines = []
    for row in found:
        lines.append(f"{row['level']:5} {row['name']:{width}}  {row['detail']}")
        if row["remedy"]:
            lines.append(f"{'':5} {'':{width}}  -> {row['remedy']}")
    return "\n".join(lines)
