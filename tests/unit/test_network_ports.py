"""The books of published ports, and their form in the kernel's maps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import AlreadyExistsError
from crishim.linux.netlink import wire
from crishim.linux.nft import messages
from crishim.network import firewall
from crishim.network.plan import PortRule, plan_subnets
from crishim.network.ports import Owner, PortTable, describe

ONE, TWO = Owner("1" * 64, "shop/web"), Owner("2" * 64)


def test_a_conflict_names_every_port_and_owner_and_enters_nothing() -> None:
    table = PortTable()
    table.claim(ONE, [PortRule(4, 6, "", 80, "10.0.0.2", 80), PortRule(6, 6, "::2", 81, "fd00::2", 80)])
    wanted = [
        PortRule(4, 17, "", 80, "10.0.0.3", 80),
        PortRule(4, 6, "", 80, "10.0.0.3", 80),
        PortRule(6, 6, "::2", 81, "fd00::3", 80),
    ]
    with pytest.raises(AlreadyExistsError) as caught:
        table.claim(TWO, wanted)
    assert str(caught.value) == (
        "host port tcp 0.0.0.0:80 belongs to pod shop/web (1111111111111); "
        "host port tcp [::2]:81 belongs to pod shop/web (1111111111111)"
    )
    assert table.pods() == {ONE.pod_id}
    assert len(table.release(ONE.pod_id)) == 2
    table.claim(TWO, wanted)
    assert table.rules(TWO.pod_id) == wanted
    assert [owner for owner, _ in table.all()] == [TWO] * 3


def test_another_protocol_address_or_family_is_no_conflict() -> None:
    table = PortTable()
    table.claim(ONE, [PortRule(4, 6, "", 80, "10.0.0.2", 80)])
    for other in (
        PortRule(4, 17, "", 80, "10.0.0.3", 80),
        PortRule(4, 6, "127.0.0.1", 80, "10.0.0.3", 80),
        PortRule(6, 6, "", 80, "fd00::3", 80),
        PortRule(4, 6, "", 81, "10.0.0.3", 80),
    ):
        table.claim(TWO, [other])
    assert describe(PortRule(6, 132, "", 80, "fd00::3", 80)) == "sctp [::]:80"


v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
port = st.integers(1, 65535)
protocol = st.sampled_from([6, 17, 132])
rules = st.one_of(
    st.builds(PortRule, st.just(4), protocol, st.one_of(st.just(""), v4), port, v4, port),
    st.builds(PortRule, st.just(6), protocol, st.one_of(st.just(""), v6), port, v6, port),
)


@given(rules, st.text("abc/-é", max_size=100))
def test_an_element_comes_back_with_its_owner(rule: PortRule, name: str) -> None:
    owner = Owner("f" * 64, name)
    request, keys = firewall.publish("t", owner, [rule])
    assert wire.get_text(wire.attributes(keys.payload, 4), 2)[-4:] in {"-tcp", "-udp", "sctp"}
    values = wire.attributes(request.payload, 4)
    (element,) = messages.parse_elements(request.payload)
    found, again = firewall.parse(wire.get_text(values, 2), element)
    assert again == rule
    assert found.pod_id == owner.pod_id
    assert len(element.comment.encode()) <= 127 + 2  # a character that was cut reads as a replacement
    if len(owner.comment.encode()) < 128:
        assert found == owner


def test_many_ports_are_split_into_messages_that_netlink_can_carry() -> None:
    many = [PortRule(4, 6, "", number, "10.0.0.2", number) for number in range(1, 1001)]
    requests = firewall.publish("t", ONE, many)
    assert len(requests) == 16  # the map's, then those of the set of its keys
    assert all(len(request.payload) < 60_000 for request in requests)
    found = [element for request in requests[:8] for element in messages.parse_elements(request.payload)]
    assert [firewall.parse("any4", element)[1] for element in found] == many


def test_the_table_is_made_in_one_transaction_that_needs_no_earlier_one() -> None:
    published = [(ONE, PortRule(4, 6, "", 80, "10.9.0.2", 80))]
    whats = [request.what for request in firewall.table("t", "br0", plan_subnets(["10.9.0.0/16"]), published)]
    assert whats[:3] == ["create nftables table t", "delete nftables table t", "create nftables table t"]
    assert whats[-2:] == ["add elements to nftables set t any4", "add elements to nftables set t any4-tcp"]
