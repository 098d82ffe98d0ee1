"""`crishim inspect NAME`: all that the daemon tells of a container or pod, as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crishim.cli import parser, table


def run(words: Sequence[str]) -> int:
    """Print it."""
    command = parser.make("inspect", "Print all that the daemon tells of a container or pod, as JSON.")
    command.add_argument("name", metavar="NAME", help="of a container, of a pod with --pod, or an id")
    command.add_argument("-p", "--pod", action="store_true", help="the pod, not a container of it")
    parser.add_socket_flags(command)
    arguments = command.parse_args(words)
    config = parser.config_of(arguments)
    from google.protobuf.json_format import MessageToDict

    from crishim._proto.runtime.v1 import api_pb2 as pb
    from crishim.cli import pods
    from crishim.cli.client import Client

    with Client(config.socket_path) as client:
        answer: Any
        if arguments.pod:
            wanted = pods.pod_id(client, arguments.name)
            request = pb.PodSandboxStatusRequest(pod_sandbox_id=wanted, verbose=True)
            answer = client.call(client.runtime.PodSandboxStatus, request)
        else:
            found = pods.one(client, arguments.name).container.id
            answer = client.call(
                client.runtime.ContainerStatus, pb.ContainerStatusRequest(container_id=found, verbose=True)
            )
    document = {"status": MessageToDict(answer.status), **decoded(answer.info)}
    print(table.document(document))
    return 0


def decoded(info: Mapping[str, str]) -> dict[str, Any]:
    """Return the verbose info, whose values are JSON of their own."""
    return {key: json.loads(text) for key, text in info.items()}
