"""Which address is whose: one pool per subnet, in memory, with every lease in the store.

Addresses are handed out round-robin, so that one that was just freed is the last to come again: peers' caches and
open connections get time to end. A subnet that is no longer the instance's own is *retired*: nothing more is handed out
from it, and it stays in the books as long as someone holds an address of it. Out of scope: when an address is free
(`embedded` knows: when its link is gone). Invariant: an address is in the pool's books exactly as long as the store has
its lease, and no two owners share one, not even across overlapping subnets.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Protocol

from crishim.network.plan import PodAddress, Subnet, plan_subnets


class Leases(Protocol):
    """The store's side: which owner (a pod id) holds which address; survives the daemon."""

    def take(self, pool: str, address: str, owner: str) -> None:
        """Record a lease; AlreadyExistsError if the address is someone's."""

    def release(self, owner: str) -> list[str]:
        """Drop all leases of an owner and return their addresses; unknown owners have none."""

    def load(self, pool: str) -> Mapping[str, str]:
        """Return address → owner of one pool."""

    def pools(self) -> Sequence[str]:
        """Return the pools that have a lease."""


class MemoryLeases:
    """Leases without a store: for tests, and for a network that dies with its process."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], str] = {}

    def take(self, pool: str, address: str, owner: str) -> None:
        """Record a lease."""
        self._owners[pool, address] = owner

    def release(self, owner: str) -> list[str]:
        """Drop all leases of an owner."""
        keys = [key for key, value in self._owners.items() if value == owner]
        for key in keys:
            del self._owners[key]
        return [address for _, address in keys]

    def load(self, pool: str) -> Mapping[str, str]:
        """Return address → owner of one pool."""
        return {address: owner for (name, address), owner in self._owners.items() if name == pool}

    def pools(self) -> list[str]:
        """Return the pools that have a lease."""
        return sorted({name for name, _ in self._owners})


class Pool:
    """The addresses of one subnet that pods may get: all but the network's own, the gateway's and the broadcast.

    `others` are retired pools, whose owners may hold addresses of this one.
    """

    def __init__(self, subnet: Subnet, taken: Mapping[str, str], others: "Sequence[Pool]" = ()) -> None:
        self.subnet = subnet
        self._others = others
        first = int(subnet.network.network_address)
        last = int(subnet.network.broadcast_address)
        self._first = first + 2
        self._size = last - self._first + (0 if subnet.version == 4 else 1)
        self._owners = dict(taken)
        inside = [int(ipaddress.ip_address(address)) for address in taken if _in(subnet, address)]
        self._next = (max(inside) + 1 - self._first) % self._size if inside else 0

    @property
    def used(self) -> int:
        """Number of addresses with an owner."""
        return len(self._owners)

    @property
    def size(self) -> int:
        """Number of addresses in all."""
        return self._size

    @property
    def owners(self) -> Mapping[str, str]:
        """Address → owner."""
        return self._owners

    def next_free(self) -> str | None:
        """Return the free address that was in use longest ago, None if there is none; does not take it."""
        make = ipaddress.IPv4Address if self.subnet.version == 4 else ipaddress.IPv6Address
        # Of any len(owners) + 1 addresses in a row one is free.
        held = [self._owners, *(pool.owners for pool in self._others)]
        for step in range(min(self._size, sum(map(len, held)) + 1)):
            offset = (self._next + step) % self._size
            address = str(make(self._first + offset))
            if not any(address in owners for owners in held):
                return address
        return None

    def take(self, address: str, owner: str) -> None:
        """Enter an owner and move on."""
        self._owners[address] = owner
        self._next = (int(ipaddress.ip_address(address)) + 1 - self._first) % self._size

    def free(self, owner: str) -> None:
        """Strike an owner out."""
        for address in [address for address, value in self._owners.items() if value == owner]:
            del self._owners[address]


class Ipam:
    """All pools of an instance, and their leases."""

    def __init__(self, subnets: Sequence[Subnet], leases: Leases) -> None:
        self._leases = leases
        self.pools: tuple[Pool, ...] = ()
        self.retired: tuple[Pool, ...] = ()
        self.use(subnets)

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """All subnets of which someone may hold an address, the current ones first."""
        return tuple(pool.subnet for pool in (*self.pools, *self.retired))

    def use(self, subnets: Sequence[Subnet]) -> None:
        """Hand out addresses of these subnets from now on; what others have leases in is retired."""
        current = {subnet.text for subnet in subnets}
        old = [plan_subnets([text])[0] for text in self._leases.pools() if text not in current]
        self.retired = tuple(Pool(subnet, self._leases.load(subnet.text)) for subnet in old)
        self.pools = tuple(Pool(subnet, self._leases.load(subnet.text), self.retired) for subnet in subnets)

    def conflict(self, subnets: Sequence[Subnet]) -> str:
        """Return why these subnets cannot be used while owners keep what they hold, or "" if they can.

        An address that is the new gateway, or names the new network or its broadcast, cannot be a pod's as well.
        """
        current = {subnet.text for subnet in subnets}
        for text in self._leases.pools():
            if text in current:
                continue
            for address, owner in self._leases.load(text).items():
                for subnet in subnets:
                    if address in {subnet.gateway, *map(str, (subnet.network[0], subnet.network[-1]))}:
                        return (
                            f"pod {owner[:13]} still has {address} of {text}, which {subnet.text} needs for itself;"
                            " remove that pod first"
                        )
        return ""

    def take(self, owner: str) -> tuple[PodAddress, ...] | None:
        """Lease one address of each family to `owner`; None, and nothing taken, if one family has none left."""
        found = [(pool, pool.next_free()) for pool in self.pools]
        taken = []
        for pool, address in found:
            if address is None:
                return None
            taken.append((pool, address))
        try:
            for pool, address in taken:
                self._leases.take(pool.subnet.text, address, owner)
                pool.take(address, owner)
        except BaseException:
            self.release(owner)
            raise
        return tuple(PodAddress(address, pool.subnet) for pool, address in taken)

    def release(self, owner: str) -> int:
        """Free what `owner` holds; return how many leases that were."""
        count = len(self._leases.release(owner))
        for pool in (*self.pools, *self.retired):
            pool.free(owner)
        return count

    def holdings(self) -> dict[str, list[str]]:
        """Return what each owner holds, IPv4 first."""
        found: dict[str, list[str]] = {}
        for pool in sorted((*self.pools, *self.retired), key=lambda pool: pool.subnet.version):
            for address, owner in pool.owners.items():
                found.setdefault(owner, []).append(address)
        return found

    def owners(self) -> frozenset[str]:
        """Return everyone who holds an address."""
        return frozenset(owner for pool in (*self.pools, *self.retired) for owner in pool.owners.values())

    def full(self) -> list[Pool]:
        """Return the pools that have no free address."""
        return [pool for pool in self.pools if pool.next_free() is None]


def _in(subnet: Subnet, address: str) -> bool:
    return ipaddress.ip_address(address) in subnet.network
