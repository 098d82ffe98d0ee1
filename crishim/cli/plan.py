"""`crishim plan ID`: the plan of a container as the daemon froze it, as JSON.

The daemon gives it in ContainerStatus(verbose), as it does to `crictl inspect`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crishim.cli import parser
from crishim.errors import NotFoundError


def run(words: Sequence[str]) -> int:
    """Print the plan of one container."""
    command = parser.make("plan", "Print the frozen plan that a container is (or was) started by, as JSON.")
    command.add_argument("id", metavar="ID", help="a container's id or a prefix of it that only one container has")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        info = client.container_info(arguments.id)
    print(json.dumps(plan_of(info, arguments.id), indent=2, ensure_ascii=False))
    return 0


def plan_of(info: Mapping[str, str], container_id: str) -> Any:
    """Return the plan from a container's verbose info: a key of its own, or a member of `info`."""
    if "plan" in info:
        return json.loads(info["plan"])
    general = json.loads(info.get("info", "{}"))
    if "plan" not in general:
        raise NotFoundError(f"the daemon knows no plan of container {container_id}")
    return general["plan"]
