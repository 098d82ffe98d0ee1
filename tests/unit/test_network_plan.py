"""Subnets, names and port rules as pure decisions."""

import hashlib

import pytest

from crishim.errors import InvalidArgumentError
from crishim.network.model import AttachRequest
from crishim.network.plan import (
    PodAddress,
    PortRule,
    check_ports,
    hardware_address,
    link_name,
    link_prefix,
    plan_pod_cidr,
    plan_rules,
    plan_subnets,
)
from crishim.network.settings import NetworkSettings
from crishim.request import PortMapping, Protocol

POD = "0123456789abcdef" * 4


def test_subnets_are_sorted_by_family_and_their_first_address_is_the_gateway() -> None:
    six, four = "fd00:9::/64", "10.9.0.0/16"
    planned = plan_subnets([six, four])
    assert [(s.text, s.gateway, s.prefix, s.version) for s in planned] == [
        (four, "10.9.0.1", 16, 4),
        (six, "fd00:9::1", 64, 6),
    ]


@pytest.mark.parametrize(
    ("texts", "field", "words"),
    [
        ([], "network.subnets", "is empty"),
        (["10.9.0.1/16"], "network.subnets[0]", "host bits set"),
        (["nonsense"], "network.subnets[0]", "'nonsense'"),
        (["10.9.0.0/31"], "network.subnets[0]", "no room for a gateway and a pod"),
        (["fd00::/127"], "network.subnets[0]", "no room for a gateway and a pod"),
        (["10.9.0.0/16", "10.8.0.0/16"], "network.subnets[1]", "second subnet of IPv4"),
        (["127.9.0.0/16"], "network.subnets[0]", "is for loopback"),
        (["224.0.0.0/8"], "network.subnets[0]", "is for multicast"),
        (["fe80::/64"], "network.subnets[0]", "is for link-local addresses"),
        (["0.0.0.0/8"], "network.subnets[0]", "is for no host"),
    ],
)
def test_a_wrong_subnet_is_refused(texts: list[str], field: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        plan_subnets(texts)
    assert caught.value.field == field


def test_a_pod_cidr_is_one_subnet_or_one_of_each_family() -> None:
    assert plan_pod_cidr("") == plan_pod_cidr(" ") == ()
    assert [subnet.text for subnet in plan_pod_cidr("10.9.4.0/24")] == ["10.9.4.0/24"]
    assert [subnet.text for subnet in plan_pod_cidr("fd00:9::/64, 10.9.4.0/24")] == ["10.9.4.0/24", "fd00:9::/64"]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("10.9.4.0", "[0]", "no room"),
        ("10.9.4.1/24", "[0]", "host bits set"),
        ("10.9.4.0/24,", "[1]", "'' is no subnet"),
        ("10.9.4.0/24,10.9.5.0/24", "[1]", "second subnet of IPv4"),
        ("10.9.4.0/24;fd00::/64", "[0]", "is no subnet"),
    ],
)
def test_a_wrong_pod_cidr_names_the_field(text: str, where: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        plan_pod_cidr(text)
    assert caught.value.field == f"runtime_config.network_config.pod_cidr{where}"


@pytest.mark.parametrize(
    ("bridge", "mtu", "field"),
    [
        ("", None, "network.bridge"),
        ("a/b", None, "network.bridge"),
        ("x" * 16, None, "network.bridge"),
        ("..", None, "network.bridge"),
        ("br0", 576, "network.mtu"),
        ("br0", 70000, "network.mtu"),
    ],
)
def test_wrong_settings_are_refused(bridge: str, mtu: int | None, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        NetworkSettings(bridge, ("10.9.0.0/16",), mtu=mtu)
    assert caught.value.field == field


def test_names_fit_the_kernel_and_derive_from_instance_and_pod() -> None:
    name = link_name("crishim0", POD)
    assert len(name) == 15
    assert name == "v" + hashlib.sha256(b"crishim0").hexdigest()[:4] + POD[:10]
    assert name.startswith(link_prefix("crishim0"))
    assert link_prefix("crishim0") != link_prefix("crishim1")
    assert NetworkSettings("crishim1", ("10.9.0.0/16",)).table_name == "crishim-crishim1"


def test_an_address_always_has_the_same_local_mac() -> None:
    assert hardware_address("10.9.1.2") == "0a:58:0a:09:01:02"
    six = hardware_address("fd00::2")
    assert six == hardware_address("fd00:0::2") != hardware_address("fd00::3")
    assert six.startswith("0a:58:")


def _addresses(*texts: str) -> list[PodAddress]:
    subnets = {s.version: s for s in plan_subnets(["10.9.0.0/16", "fd00:9::/64"])}
    return [PodAddress(text, subnets[6 if ":" in text else 4]) for text in texts]


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        ("", [(4, ""), (6, "")]),
        ("0.0.0.0", [(4, "")]),
        ("::", [(6, "")]),
        ("127.0.0.1", [(4, "127.0.0.1")]),
        ("2001:DB8:0::1", [(6, "2001:db8::1")]),
    ],
)
def test_a_port_is_published_on_the_families_it_names(host_ip: str, expected: list[tuple[int, str]]) -> None:
    request = AttachRequest(POD, ports=(PortMapping(Protocol.UDP, 53, 5353, host_ip), PortMapping(Protocol.TCP, 80, 0)))
    rules = plan_rules(request, _addresses("10.9.0.2", "fd00:9::2"))
    assert [(rule.version, rule.host_ip) for rule in rules] == expected
    assert {(rule.protocol, rule.host_port, rule.container_port) for rule in rules} == {(17, 5353, 53)}


def test_the_same_port_twice_is_one_rule() -> None:
    request = AttachRequest(
        POD, ports=(PortMapping(Protocol.TCP, 80, 8080), PortMapping(Protocol.TCP, 80, 8080, "0.0.0.0"))
    )
    assert plan_rules(request, _addresses("10.9.0.2")) == (PortRule(4, 6, "", 8080, "10.9.0.2", 80),)


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (PortMapping(Protocol.TCP, 80, 80, "::1"), "use 127.0.0.1"),
        (PortMapping(Protocol.TCP, 80, 80, "fd00::1"), "IPv6, but this instance's pods have none"),
    ],
)
def test_a_wrong_port_names_its_field(port: PortMapping, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^config\.port_mappings\[1\]\.") as caught:
        check_ports([PortMapping(Protocol.TCP, 1, 1), port], [4])
    assert words in str(caught.value)


def test_ports_that_are_not_published_need_nothing() -> None:
    check_ports([PortMapping(Protocol.TCP, 0, 0), PortMapping(Protocol.TCP, 80, 0, "whatever")], [4])
