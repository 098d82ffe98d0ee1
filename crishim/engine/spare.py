"""Which pods a spare keeper will do for, told so that the spawner can pass such a request on without reading it."""

from typing import Any

NAMESPACES = ("net", "ipc", "uts")
SHM_SIZE = 64 * 1024 * 1024
MARK = b'{"op":"spare",'
"""How the packet of a request begins that a spare keeper may have."""


def operation(plan: dict[str, Any]) -> str:
    """Return a request's `op`: `spare` if a spare keeper has just what the pod of this plan wants, else `keeper`."""
    fits = tuple(plan["namespaces"]) == NAMESPACES and plan["shm_size"] == SHM_SIZE
    return "spare" if fits else "keeper"
