"""What processes hold in memory: proportional set size plus page tables.

PSS counts a page shared by n processes as 1/n in each (proc(5), smaps_rollup); page tables (status, VmPTE) are kernel
memory that every process has for itself and that no other figure shows. A process that ends meanwhile counts as 0.
"""

import contextlib
from collections.abc import Iterable


def held(pids: Iterable[int]) -> float:
    """Return PSS + VmPTE of the processes, in MB (10^6 bytes)."""
    total = 0
    for pid in pids:
        total += _field(f"/proc/{pid}/smaps_rollup", "Pss:") + _field(f"/proc/{pid}/status", "VmPTE:")
    return total * 1024 / 1e6


def command(pid: int) -> str:
    """Return the name of the program a process runs, "" if it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""


def _field(path: str, name: str) -> int:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1])
    return 0
