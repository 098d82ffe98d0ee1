"""Netlink messages as bytes: round trips, hostile input, and pyroute2's decoder as a second opinion."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from crishim.linux.netlink import address, conntrack, link, wire
from crishim.linux.netlink.connection import failure_of
from crishim.linux.nft import listing


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=300), max_size=12))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    data = b"".join(wire.attribute(kind, value) for kind, value in values.items())
    assert len(data) % 4 == 0
    assert wire.attributes(data) == values
    assert wire.elements(data) == list(values.values())


@given(st.lists(st.tuples(st.integers(16, 0xFFFF), st.binary(max_size=100)), max_size=6), st.integers(1, 1 << 30))
def test_a_batch_comes_back_numbered(parts: list[tuple[int, bytes]], first: int) -> None:
    data = wire.join([wire.Request(kind, 0, payload, "x") for kind, payload in parts], first)
    found = list(wire.messages(data))
    assert [(m.kind, m.payload) for m in found] == parts
    assert [m.sequence for m in found] == list(range(first, first + len(parts)))
    assert all(m.flags == wire.F_REQUEST for m in found)


@given(st.binary(max_size=400))
def test_any_bytes_end_in_values_or_one_error(data: bytes) -> None:
    for parse in (lambda: list(wire.messages(data)), lambda: wire.attributes(data)):
        try:
            parse()
        except wire.WireError:
            continue


@pytest.mark.parametrize("length", [0, 3, 15, 100])
def test_a_length_that_cannot_be_is_an_error(length: int) -> None:
    with pytest.raises(wire.WireError, match=f"message of {length} bytes"):
        list(wire.messages(struct.pack("=IHHII", length, 16, 0, 1, 0)))


def test_an_error_carries_the_kernels_words() -> None:
    tlv = wire.text(1, "Unknown device type.")
    payload = struct.pack("=iIHHII", -22, 16, 16, 5, 7, 0) + tlv
    message = wire.Message(wire.ERROR, wire.F_ACK_TLVS | wire.F_CAPPED, 7, payload)
    error = failure_of(message, "create link x")
    assert error is not None
    assert error.errno == 22
    assert str(error) == "create link x (Unknown device type): Invalid argument (EINVAL)"


def test_an_error_that_repeats_the_request_is_read_too() -> None:
    request = wire.pack(wire.Request(16, 0, b"abcdefgh", "x"), 7)
    payload = struct.pack("=i", -22) + request + wire.text(1, "words")
    assert wire.fault(wire.Message(wire.ERROR, wire.F_ACK_TLVS, 7, payload)) == (22, "words")


def test_an_acknowledgement_is_no_failure() -> None:
    assert failure_of(wire.Message(wire.ERROR, 0, 1, bytes(20)), "x") is None


def _decode(kind: type, request: wire.Request) -> dict[str, object]:
    message = kind(wire.pack(request, 1))
    message.decode()
    wanted = ("index", "flags", "prefixlen", "dst_len", "family")
    return {key: message[key] for key in wanted if key in message} | {"attributes": dict(message["attrs"])}


def test_pyroute2_reads_our_bridge() -> None:
    values = _decode(ifinfmsg, link.add_bridge("br7", mac="0a:58:0a:01:00:01", mtu=1400))
    attributes = values["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["IFLA_IFNAME"] == "br7"
    assert attributes["IFLA_ADDRESS"] == "0a:58:0a:01:00:01"
    assert attributes["IFLA_MTU"] == 1400
    info = dict(attributes["IFLA_LINKINFO"]["attrs"])
    assert info["IFLA_INFO_KIND"] == "bridge"
    assert dict(info["IFLA_INFO_DATA"]["attrs"]) == {"IFLA_BR_MCAST_SNOOPING": 0}


def test_pyroute2_reads_our_veth() -> None:
    request = link.add_veth("v0", master=9, mtu=1400, peer_name="eth0", peer_mac="0a:58:0a:01:00:02", peer_netns_fd=11)
    attributes = _decode(ifinfmsg, request)["attributes"]
    assert isinstance(attributes, dict)
    assert (attributes["IFLA_IFNAME"], attributes["IFLA_MASTER"]) == ("v0", 9)
    info = dict(attributes["IFLA_LINKINFO"]["attrs"])
    assert info["IFLA_INFO_KIND"] == "veth"
    peer = dict(dict(info["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]["attrs"])
    assert peer == {
        "IFLA_IFNAME": "eth0",
        "IFLA_ADDRESS": "0a:58:0a:01:00:02",
        "IFLA_MTU": 1400,
        "IFLA_NET_NS_FD": 11,
    }


@pytest.mark.parametrize(
    ("text", "prefix", "broadcast"), [("10.1.2.3", 16, "10.1.255.255"), ("10.1.2.3", 31, None), ("fd00::2", 64, None)]
)
def test_pyroute2_reads_our_addresses(text: str, prefix: int, broadcast: str | None) -> None:
    values = _decode(ifaddrmsg, address.add_address(4, text, prefix))
    attributes = values["attributes"]
    assert isinstance(attributes, dict)
    assert (values["index"], values["prefixlen"]) == (4, prefix)
    assert attributes["IFA_LOCAL"] == attributes["IFA_ADDRESS"] == text
    assert attributes.get("IFA_BROADCAST") == broadcast
    assert address.parse_address(address.add_address(4, text, prefix).payload) == address.Address(4, text, prefix)


@pytest.mark.parametrize("gateway", ["10.1.0.1", "fd00::1"])
def test_pyroute2_reads_our_routes(gateway: str) -> None:
    request = address.add_default_route(4, gateway)
    values = _decode(rtmsg, request)
    attributes = values["attributes"]
    assert isinstance(attributes, dict)
    assert values["dst_len"] == 0
    assert (attributes["RTA_GATEWAY"], attributes["RTA_OIF"]) == (gateway, 4)
    assert address.default_route_link(request.payload) == 4


def test_a_link_is_read_back() -> None:
    request = link.add_veth("v0", master=9, mtu=1400, peer_name="eth0", peer_mac="0a:58:0a:01:00:02", peer_netns_fd=11)
    assert link.parse(request.payload) == link.Link(0, "v0", link.UP, "veth", 9, 1400)


def test_a_flow_is_deleted_by_its_own_tuple_and_id() -> None:
    flow = struct.pack(">BBH", 2, 0, 0) + wire.nested(1, wire.nested(1, wire.attribute(1, bytes(4))))
    flow += wire.be32(12, 77) + wire.be32(7, 30)
    values = wire.attributes(conntrack.delete(flow).payload, 4)
    assert set(values) == {1, 12}
    assert values[12] == struct.pack(">I", 77)


def test_the_destination_of_a_flow() -> None:
    def flow(family: int, kind: int, address: bytes, port: int) -> bytes:
        proto = wire.nested(2, wire.u8(1, 17), wire.attribute(3, port.to_bytes(2, "big")))
        return bytes((family, 0, 0, 0)) + wire.nested(1, wire.nested(1, wire.attribute(kind, address)), proto)

    assert conntrack.destination(flow(2, 2, b"\x0a\1\2\3", 9999)) == (b"\x0a\1\2\3", 9999)
    assert conntrack.destination(flow(10, 4, bytes(15) + b"\1", 53)) == (bytes(15) + b"\1", 53)
    assert conntrack.destination(bytes((2, 0, 0, 0))) == (b"", 0)


def test_routes_of_the_main_table_only() -> None:
    def route(family: int, length: int, table: int, *values: bytes, kind: int = 1) -> bytes:
        return struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 3, 0, kind, 0) + b"".join(values)

    gateway = wire.attribute(5, bytes((10, 1, 0, 1)))
    target = wire.attribute(1, bytes((10, 1, 0, 0)))
    assert address.parse_route(route(2, 0, 254, gateway, wire.u32(4, 7))) == address.Route(7, "default", "10.1.0.1")
    assert address.parse_route(route(2, 16, 254, target, wire.u32(4, 7))) == address.Route(7, "10.1.0.0/16")
    assert address.parse_route(route(2, 16, 255, target)) is None
    assert address.parse_route(route(2, 16, 254, target, kind=2)) is None


def test_chains_and_the_generation_of_nftables() -> None:
    head = struct.pack(">BBH", 1, 0, 5)
    hook = wire.nested(4, wire.be32(1, 2), wire.be32(2, -10))
    named = wire.text(1, "t") + wire.text(3, "c")
    base = head + named + hook + wire.be32(5, 0) + wire.text(7, "filter")
    assert listing.parse_chain(base) == listing.Chain("inet", "t", "c", listing.FORWARD, -10, listing.DROP, "filter")
    assert listing.parse_chain(head + named) == listing.Chain("inet", "t", "c")
    assert listing.parse_generation(head + wire.be32(1, 77)) == 77
    assert listing.parse_generation(head) == 0
