"""Leases and pools: round robin, exhaustion, restarts."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import AlreadyExistsError
from crishim.network.ipam import Ipam, Leases, MemoryLeases
from crishim.network.plan import plan_subnets


def ipam(*subnets: str, leases: Leases | None = None) -> Ipam:
    return Ipam(plan_subnets(subnets), leases if leases is not None else MemoryLeases())


def take(books: Ipam, owner: str) -> list[str]:
    taken = books.take(owner)
    return [given.address for given in taken] if taken is not None else []


def test_network_gateway_and_broadcast_are_never_given() -> None:
    books = ipam("10.9.0.0/29")
    assert [take(books, str(n)) for n in range(6)] == [[f"10.9.0.{n}"] for n in range(2, 7)] + [[]]
    six = ipam("fd00::/125")
    assert [take(six, str(n)) for n in range(7)] == [[f"fd00::{n}"] for n in range(2, 8)] + [[]]


def test_a_freed_address_is_the_last_to_come_again() -> None:
    books = ipam("10.9.0.0/28")
    seen = []
    for n in range(26):
        seen += take(books, str(n))
        books.release(str(n))
    assert seen == 2 * [f"10.9.0.{n}" for n in range(2, 15)]


def test_one_family_without_room_takes_nothing_of_the_other() -> None:
    leases = MemoryLeases()
    books = ipam("10.9.0.0/30", "fd00::/64", leases=leases)
    assert take(books, "a") == ["10.9.0.2", "fd00::2"]
    assert books.take("b") is None
    assert leases.load("fd00::/64") == {"fd00::2": "a"}
    assert [pool.subnet.text for pool in books.full()] == ["10.9.0.0/30"]


def test_leases_survive_in_the_store_and_the_next_is_a_new_one() -> None:
    leases = MemoryLeases()
    first = ipam("10.9.0.0/24", leases=leases)
    take(first, "a")
    take(first, "b")
    again = ipam("10.9.0.0/24", leases=leases)
    assert again.owners() == {"a", "b"}
    assert take(again, "c") == ["10.9.0.4"]
    assert again.release("a") == 1
    assert again.release("a") == 0
    assert again.owners() == {"b", "c"}


class Refusing(MemoryLeases):
    """A store that refuses IPv6 addresses, as one with a lease that the books lack would."""

    def take(self, pool: str, address: str, owner: str) -> None:
        if ":" in address:
            raise AlreadyExistsError("the address is leased")
        super().take(pool, address, owner)

    def load(self, pool: str) -> Mapping[str, str]:
        return super().load(pool)


def test_a_lease_that_the_store_refuses_gives_the_others_back() -> None:
    books = ipam("10.9.0.0/24", "fd00::/64", leases=Refusing())
    with pytest.raises(AlreadyExistsError):
        books.take("a")
    assert books.owners() == frozenset()


@given(st.lists(st.integers(0, 9), max_size=60))
def test_whatever_comes_and_goes_no_two_share_an_address(steps: list[int]) -> None:
    books = ipam("10.9.0.0/29")
    held: dict[int, str] = {}
    for owner in steps:
        if owner in held:
            books.release(str(owner))
            del held[owner]
        elif addresses := take(books, str(owner)):
            assert addresses[0] not in held.values()
            held[owner] = addresses[0]
        else:
            assert len(held) == 5
    assert {address: owner for owner, address in held.items()} == {
        address: int(owner) for address, owner in books.pools[0].owners.items()
    }


def test_another_range_serves_new_owners_and_keeps_the_old_ones() -> None:
    leases = MemoryLeases()
    books = ipam("10.9.0.0/16", leases=leases)
    assert take(books, "old") == ["10.9.0.2"]
    assert take(books, "older") == ["10.9.0.3"]
    books.use(plan_subnets(["10.9.0.0/29", "fd00::/64"]))
    assert [subnet.text for subnet in books.subnets] == ["10.9.0.0/29", "fd00::/64", "10.9.0.0/16"]
    # what the old range's owners hold is not given again
    assert [take(books, str(n)) for n in range(3)] == [[f"10.9.0.{n}", f"fd00::{n - 2}"] for n in (4, 5, 6)]
    assert books.take("more") is None
    assert books.release("old") == 1
    assert take(books, "more") == ["10.9.0.2", "fd00::5"]
    assert books.owners() == {"older", "0", "1", "2", "more"}
    # a restart knows the old range from its leases
    again = ipam("10.9.0.0/29", "fd00::/64", leases=leases)
    assert [subnet.text for subnet in again.subnets] == ["10.9.0.0/29", "fd00::/64", "10.9.0.0/16"]
    again.release("older")
    assert ipam("10.9.0.0/29", "fd00::/64", leases=leases).retired == ()


def test_a_range_whose_gateway_is_a_pods_address_is_a_conflict() -> None:
    leases = MemoryLeases()
    books = ipam("10.9.0.0/16", leases=leases)
    take(books, "pod")
    assert books.conflict(plan_subnets(["10.9.0.0/28"])) == ""
    leases.take("10.9.0.0/16", "10.9.4.1", "other")
    found = books.conflict(plan_subnets(["10.9.4.0/24"]))
    assert "pod other still has 10.9.4.1 of 10.9.0.0/16, which 10.9.4.0/24 needs" in found
    leases.take("10.9.0.0/16", "10.9.5.255", "third")
    assert "pod third" in books.conflict(plan_subnets(["10.9.5.0/24"]))
