"""A private daemon whose host is a network namespace of the test: links, rules and switches are all its own.

So a test sees at once what a daemon leaves there, several daemons may have one host, and a host may have an outside.
"""

import os
import sqlite3
from collections.abc import Sequence
from typing import Protocol

from tests.support.instance import Instance, python


class Host(Protocol):
    """A network namespace."""

    fd: int

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program there."""


class Walled(Instance):
    """An instance on a host of its own.

    Args:
        host: where it runs; its `lo` must be up.
        subnets: of its pods; () leaves them to the configuration's default.
        config: as for `Instance`.
    """

    def __init__(self, host: Host, subnets: Sequence[str], config: str = "") -> None:
        super().__init__(config)
        self.host = host
        self.subnets = tuple(subnets)
        self.point = ""
        """Where the next daemon kills itself (`tests.support.killing`), or ""."""

    def command(self) -> list[str]:
        """Return the daemon's argv, in the host's namespace."""
        plain = super().command()
        words = plain[plain.index("serve") :]
        at = words.index("--subnet")
        words[at : at + 2] = [word for subnet in self.subnets for word in ("--subnet", subnet)]
        module = ["tests.support.killing", self.point] if self.point else ["crishim"]
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.host.fd}", python(), "-m", *module, *words]

    def leases(self) -> set[str]:
        """Return the owners of addresses, as the store has them."""
        with sqlite3.connect(f"file:{self.root}/state.db?mode=ro", uri=True) as database:
            return {owner for (owner,) in database.execute("SELECT owner FROM leases")}

    def links(self) -> list[str]:
        """Return the names of pods' links on the host."""
        lines = self.host.run("ip", "-o", "link", "show", "type", "veth").splitlines()
        names = [line.split(": ")[1].partition("@")[0] for line in lines]
        return [name for name in names if name.startswith("v")]

    def namespaces(self) -> set[str]:
        """Return the pods that have a pinned namespace."""
        return set(os.listdir(f"{self.state}/ns"))

    def directories(self) -> set[str]:
        """Return the pods that have a directory of state, and with it a keeper."""
        return set(os.listdir(f"{self.state}/pods"))
