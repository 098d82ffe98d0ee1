"""The states of sandboxes and containers, and the moves between them that exist.

```
sandbox      (reserved) CREATING ──► READY ──► NOTREADY ──► (removed)
                  │                       ▲  ▲
                  ├── failed: (removed)   │  └── stopped, keeper lost, reboot
                  └───────────────────────┘ failed, and something could not be taken back

container    CREATED ──► RUNNING ──► EXITED ──► (removed)
                │           │           ▲
                │           └► UNKNOWN ─┤  its keeper does not answer, and nothing tells whether it still runs
                └───────────────────────┘  it could not be started, or its pod ended first
```

A state never goes back. Every change of an object's state passes through `check_sandbox` or `check_container`, so
that a move which is not in the table is a fault of ours that shows at once, not a wrong row in a list.
Out of scope: what makes the moves happen (`sandboxes`, `containers`, `exits`, `reconcile`).
"""

from enum import IntEnum

from crishim.errors import InternalError
from crishim.pods.views import ContainerState, SandboxState


class Stage(IntEnum):
    """A sandbox's state in the store; CREATING is not shown to anyone."""

    CREATING = 0
    READY = 1
    NOTREADY = 2


SANDBOX_MOVES: dict[Stage, frozenset[Stage]] = {
    Stage.CREATING: frozenset({Stage.CREATING, Stage.READY, Stage.NOTREADY}),
    Stage.READY: frozenset({Stage.READY, Stage.NOTREADY}),
    Stage.NOTREADY: frozenset({Stage.NOTREADY}),
}

CONTAINER_MOVES: dict[ContainerState, frozenset[ContainerState]] = {
    ContainerState.CREATED: frozenset({ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED}),
    ContainerState.RUNNING: frozenset({ContainerState.RUNNING, ContainerState.EXITED, ContainerState.UNKNOWN}),
    ContainerState.UNKNOWN: frozenset({ContainerState.UNKNOWN, ContainerState.EXITED}),
    ContainerState.EXITED: frozenset({ContainerState.EXITED}),
}

SHOWN: dict[Stage, SandboxState] = {Stage.READY: SandboxState.READY, Stage.NOTREADY: SandboxState.NOTREADY}


def check_sandbox(identifier: str, old: Stage, new: Stage) -> None:
    """Raise InternalError unless a sandbox may go from `old` to `new` (staying is allowed)."""
    if new not in SANDBOX_MOVES[old]:
        raise InternalError(f"sandbox {identifier}: no way from {old.name} to {new.name}")


def check_container(identifier: str, old: ContainerState, new: ContainerState) -> None:
    """Raise InternalError unless a container may go from `old` to `new` (staying is allowed)."""
    if new not in CONTAINER_MOVES[old]:
        raise InternalError(f"container {identifier}: no way from {old.name} to {new.name}")
