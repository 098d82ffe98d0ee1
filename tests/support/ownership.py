"""Whose a kernel object is: how a test run knows its own things on a machine that others use at the same time.

Everything that a run makes carries the run's id: processes in their environment (`CRISHIM_TEST`), their command
line, their cgroup or their descent; directories, cgroups, links and tables in their names. In strict mode (the run has
the machine to itself, as in CI) everything that is new counts.
"""

import os
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from tests.support import machine

VARIABLE = "CRISHIM_TEST"
"""Environment variable that holds the run's id; every program of the run inherits it."""

STRICT = "CRISHIM_STRICT_LEAKS"
"""Environment variable that turns strict mode on when it is `1`."""

FOREIGN_CGROUPS = ("/system.slice", "/user.slice", "/init.scope", "/machine.slice")


def run_id() -> str:
    """Return this run's id of six hexadecimal digits, made at the first call and inherited from then on."""
    return os.environ.setdefault(VARIABLE, secrets.token_hex(3))


def strict() -> bool:
    """Tell whether the whole machine is compared."""
    return os.environ.get(STRICT) == "1"


class Standing(Protocol):
    """Something that lives longer than one test, and what it keeps while it lives."""

    def keeps(self, kind: str, name: str) -> bool:
        """Tell whether the thing of this kind and name is its own, to be there between tests."""


@dataclass(slots=True)
class Scope:
    """What belongs to this run.

    Attributes:
        directories: below these everything is ours: mounts, command lines, descriptors.
        words: parts of names (cgroups, links, tables) that only this run uses.
        live: instances and registries that are meant to be there now.
        whole: whether the machine is this run's alone, so that everything new counts.
    """

    directories: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    live: list[Standing] = field(default_factory=list)
    whole: bool = field(default_factory=strict)

    def owns_mount(self, point: str, detail: str) -> bool:
        """Tell whether a mount is ours by its mount point or source."""
        return self.whole or any(d in point or d in detail for d in self.directories)

    def owns_name(self, name: str) -> bool:
        """Tell whether a cgroup, link or table is ours by its name."""
        if self.whole:
            return not any(part in name for part in FOREIGN_CGROUPS)
        return any(word in name for word in self.words)

    def is_kept(self, kind: str, name: str) -> bool:
        """Tell whether a live instance keeps this until it stops."""
        return any(owner.keeps(kind, name) for owner in self.live)

    def owns_process(self, row: machine.Process, table: dict[int, machine.Process]) -> bool:
        """Tell whether a process is ours: by environment, command line, cgroup or descent."""
        if row.parent == 2 or row.pid == 2:  # kernel threads
            return False
        if row.state == "Z" and row.parent == 1:  # init reaps it
            return False
        # An orphan of ours still has the run's environment or an instance's cgroup. That its parent is process 1 says
        # nothing: a machine's own services start programs at any time.
        return _descends(row, os.getpid(), table) or self._marked(row)

    def _marked(self, row: machine.Process) -> bool:
        marker = f"{VARIABLE}={run_id()}".encode()
        if marker in machine.read(f"/proc/{row.pid}/environ").split(b"\0"):
            return True
        command = machine.read(f"/proc/{row.pid}/cmdline").decode("utf-8", "replace")
        groups = machine.read(f"/proc/{row.pid}/cgroup").decode("utf-8", "replace")
        return any(d in command for d in self.directories) or any(w in groups for w in self.words)


def _descends(row: machine.Process, ancestor: int, table: dict[int, machine.Process]) -> bool:
    pid = row.parent
    for _ in range(64):
        if pid == ancestor:
            return True
        parent = table.get(pid)
        if parent is None:
            return False
        pid = parent.parent
    return False


SCOPE = Scope()
"""The scope of this run; instances and fixtures add to it."""
