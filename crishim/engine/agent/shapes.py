"""First batches kept ready: what a plan compiles to hangs on its shape, and containers of one workload have the same.

The shape is everything that the first batch is made of, but for the ids of container and pod, which occur in paths all
over it: they are replaced by others of the same length, and back in the finished bytes. Out of scope: the second batch,
which hangs on what the child found.
"""

import json
from typing import Any, NamedTuple

from crishim.engine.agent import starts
from crishim.engine.agent.batch import Blob
from crishim.engine.agent.layout import HELD_PROC
from crishim.engine.agent.starts import First

KEPT = 8
"""Shapes that are kept; the one that was used longest ago makes room."""


class Ready(NamedTuple):
    """A first batch with its bytes, and the ids that stand in it: (stand-in, id)."""

    first: First
    content: bytes
    ids: tuple[tuple[bytes, bytes], ...]

    def named(self, text: str) -> str:
        """Return a text about this batch with the ids it is about."""
        for stand_in, own in self.ids:
            text = text.replace(stand_in.decode(), own.decode())
        return text


def ready(first: First) -> Ready:
    """Return a first batch that is used once."""
    return Ready(first, first.batch.finish().content, ())


class Shapes:
    """The shapes of one machine."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._known: dict[str, tuple[First, Blob]] = {}

    def container(self, plan: dict[str, Any], place: str, *, pod: str = "", proc: int = HELD_PROC) -> Ready:
        """Return the first batch of a container's process (arguments: see `starts.container`)."""
        ids = tuple(
            (_stand_in(plan[key], letter), plan[key].encode()) for key, letter in _IDS if len(plan[key]) >= _SHORTEST
        )
        asked = {key: plan[key] for key in _SHAPE}
        for key, members in _PARTS.items():
            asked[key] = {member: plan[key][member] for member in members}
        text = json.dumps([asked, place, pod, proc])
        for stand_in, own in ids:
            text = text.replace(own.decode(), stand_in.decode())
        found = self._known.pop(text, None)
        if found is None:
            shape, own_place, own_pod, own_proc = json.loads(text)
            first = starts.container(self._machine, shape, own_place, pod=own_pod, proc=own_proc)
            found = first, first.batch.finish()
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
        self._known[text] = found
        return Ready(found[0], found[1].fill(ids), ids)


_IDS = (("container_id", "C"), ("pod_id", "P"))
_SHORTEST = 32
"""A shorter id could occur where it is none; such a plan's shape is its own."""
_SHAPE = ("pid", "cgroup_namespace", "root", "mounts")
_PARTS = {"cgroup": ("version", "directories"), "stdio": ("stdin", "terminal"), "process": ("oom_score_adj",)}
"""What a first batch is made of: members of the plan, and parts of members."""


def _stand_in(own: str, letter: str) -> bytes:
    """Return what stands for an id: as long, and nothing that an id or a path looks like."""
    return (letter + "~" * (len(own) - 1)).encode()
