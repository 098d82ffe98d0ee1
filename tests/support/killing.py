"""`crishim serve` that kills itself with SIGKILL right before or right after one step of a pod's network.

    python -m tests.support.killing POINT serve …

The step's function is wrapped in this process; nothing in the product knows of it. A point is `before` or `after`, a
space, and the name of a step in `STEPS`.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from crishim.cli.main import main
from crishim.engine.client import Engine
from crishim.linux.netlink.connection import Connection
from crishim.linux.nft import transaction
from crishim.network import kernel
from crishim.pods.objects import Sandbox
from crishim.pods.states import Stage
from crishim.store.tables import Documents, Leases

Test = Callable[..., bool]


def _asks(words: str) -> Test:
    """Match a call whose first request says these words."""

    def matches(_connection: object, requests: Any) -> bool:
        first = requests[0] if isinstance(requests, Sequence) and not hasattr(requests, "what") else requests
        return bool(requests) and str(first.what).startswith(words)

    return matches


def _always(*_: object) -> bool:
    return True


def _becomes(stage: Stage) -> Test:
    return lambda _sandbox, status: status.stage is stage


def _records(*, result: bool) -> Test:
    """Match the write of a CNI attachment, before its ADD or with the result of it."""

    def matches(table: Any, _key: str, document: bytes) -> bool:
        return table._table == "attachments" and document.endswith(b'"result":null}') is not result

    return matches


def _forgets(table: Any, _key: str) -> bool:
    return bool(table._table == "attachments")


STEPS: dict[str, tuple[Any, str, Test]] = {
    "take a lease": (Leases, "take", _always),
    "create the link": (Connection, "request", _asks("create link v")),
    "configure the pod's side": (Connection, "request", _asks("set link lo up")),
    "give addresses": (Connection, "request", _asks("set link eth0 up")),
    "admit and publish": (transaction, "commit", _asks("add elements")),
    "forget flows": (kernel.Kernel, "_forget_flows", _always),
    "commit the sandbox": (Sandbox, "change", _becomes(Stage.READY)),
    "take ports back": (transaction, "commit", _asks("delete elements")),
    "dismiss": (kernel.Kernel, "dismiss", _always),
    "remove the pod": (Engine, "remove_pod", _always),
    "commit the stop": (Sandbox, "change", _becomes(Stage.NOTREADY)),
    "record the attachment": (Documents, "put", _records(result=False)),
    "commit the result": (Documents, "put", _records(result=True)),
    "forget the attachment": (Documents, "delete", _forgets),
    "release leases": (Leases, "release", _always),
}


def arm(point: str) -> None:
    """Wrap the step of a point."""
    when, _, step = point.partition(" ")
    owner, name, matches = STEPS[step]
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        due = matches(*arguments, **options)
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
