"""Which published port belongs to which pod: the books beside the kernel's maps.

The maps themselves are the truth (`firewall`): after a restart the books are filled from the elements, whose comment
names the pod. Invariant: a key (IP version, protocol, host IP, host port) belongs to one pod; a key with a host IP and
one without do not clash, since the kernel looks the given address up first.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crishim.errors import AlreadyExistsError
from crishim.network.plan import PROTOCOLS, PortRule

_ANY = {4: str(ipaddress.IPv4Address(0)), 6: "::"}
_NAMES = {number: protocol.word for protocol, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Owner:
    """A pod that published ports; `name` is `namespace/name` for messages, "" if it was not given."""

    pod_id: str
    name: str = ""

    @property
    def comment(self) -> str:
        """What the elements in the kernel carry: the id, a space, the name (at most 127 bytes are kept)."""
        return f"{self.pod_id} {self.name}".rstrip()

    @classmethod
    def parse(cls, comment: str) -> "Owner":
        """Read a comment back."""
        pod_id, _, name = comment.partition(" ")
        return cls(pod_id, name)

    def __str__(self) -> str:
        return f"{self.name} ({self.pod_id[:13]})" if self.name else self.pod_id[:13]


class PortTable:
    """The published ports of all pods."""

    def __init__(self) -> None:
        self._owners: dict[tuple[int, int, str, int], Owner] = {}
        self._rules: dict[str, list[PortRule]] = {}

    def claim(self, owner: Owner, rules: Sequence[PortRule]) -> None:
        """Enter a pod's ports, all or none.

        Raises:
            AlreadyExistsError: names every port that is taken and the pod that has it.
        """
        taken = [
            f"host port {describe(rule)} belongs to pod {holder}"
            for rule in rules
            if (holder := self._owners.get(rule.key)) is not None and holder.pod_id != owner.pod_id
        ]
        if taken:
            raise AlreadyExistsError("; ".join(taken))
        self.enter(owner, rules)

    def enter(self, owner: Owner, rules: Iterable[PortRule]) -> None:
        """Enter ports that the kernel already has."""
        for rule in rules:
            self._owners[rule.key] = owner
            self._rules.setdefault(owner.pod_id, []).append(rule)

    def release(self, pod_id: str) -> list[PortRule]:
        """Strike a pod's ports out and return them."""
        rules = self._rules.pop(pod_id, [])
        for rule in rules:
            self._owners.pop(rule.key, None)
        return rules

    def rules(self, pod_id: str) -> list[PortRule]:
        """Return a pod's ports."""
        return list(self._rules.get(pod_id, ()))

    def pods(self) -> frozenset[str]:
        """Return all pods that have ports."""
        return frozenset(self._rules)

    def all(self) -> list[tuple[Owner, PortRule]]:
        """Return every entry with its owner."""
        return [(self._owners[rule.key], rule) for rules in self._rules.values() for rule in rules]


def describe(rule: PortRule) -> str:
    """Return a port as people write it, like `tcp 0.0.0.0:80`."""
    host = rule.host_ip or _ANY[rule.version]
    return f"{_NAMES[rule.protocol]} {f'[{host}]' if ':' in host else host}:{rule.host_port}"
