"""Which pods a spare keeper will do for. Loaded by the daemon and in the tiny processes alike."""

from crishim.constants import SHM_SIZE

NAMESPACES = ("net", "ipc", "uts")


def fits(namespaces: tuple[str, ...], shm_size: int) -> bool:
    """Tell whether a spare keeper has just what a pod wants: these namespaces, and shared memory of so many bytes."""
    return namespaces == NAMESPACES and shm_size == SHM_SIZE
