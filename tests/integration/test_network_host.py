"""What `crishim check` finds out about a host: chains that drop forwarded packets, and what the network needs."""

import os
from collections.abc import Iterator

import pytest

from crishim.errors import KernelError
from crishim.linux import xtables
from crishim.network import host as probe
from crishim.network.plan import link_prefix, plan_subnets
from tests.integration.network_topology import Namespace, World, ask, inside, need_network_namespaces
from tests.support.abilities import need_program

SUBNETS = plan_subnets(["10.206.7.0/24", "fd00:206:7::/64"])


@pytest.fixture
def host() -> Iterator[Namespace]:
    need_network_namespaces()
    with Namespace() as made:
        yield made


def barriers(where: Namespace, bridge: str = "crishim0") -> dict[str, str]:
    with inside(where.fd):
        return {barrier.name: barrier.remedy for barrier in probe.barriers(bridge)}


def test_a_host_without_rules_has_no_barrier_and_gets_none(host: Namespace) -> None:
    need_program("nft", "nftables")
    assert barriers(host) == {}
    assert host.run("nft", "list", "ruleset") == ""
    assert host.run("cat", "/proc/thread-self/net/ip_tables_names", check=False) == ""


def test_base_chains_of_nft(host: Namespace) -> None:
    need_program("nft", "nftables")
    base = "type filter hook {0} priority filter; policy {1};"
    for family, chain, hook, policy in (
        ("inet", "closed", "forward", "drop"),
        ("inet", "open", "forward", "accept"),
        ("inet", "input", "input", "drop"),
        ("bridge", "between", "forward", "drop"),
        ("ip6", "six", "forward", "drop"),
    ):
        host.run("nft", "add", "table", family, "guard")
        host.run("nft", "add", "chain", family, "guard", chain, "{", base.format(hook, policy), "}")
    host.run("nft", "add", "chain", "inet", "guard", "plain")
    found = barriers(host)
    assert set(found) == {"chain inet guard closed", "chain bridge guard between", "chain ip6 guard six"}
    # each remedy is a command that works
    for remedy in found.values():
        host.run("sh", "-ec", remedy)
    shown = host.run("nft", "list", "ruleset")
    assert shown.count('iifname "crishim0" accept') == shown.count('oifname "crishim0" accept') == 2
    assert f'iifname "{link_prefix("crishim0")}*" accept' in shown
    # and after it nothing is left to say, but for another bridge
    assert barriers(host) == {}
    assert set(barriers(host, "crishim1")) == set(found)


@pytest.mark.parametrize("program", ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"])
def test_iptables_policies(host: Namespace, program: str) -> None:
    need_program(program, "iptables")
    try:
        host.run(program, "-P", "FORWARD", "ACCEPT")
    except AssertionError as error:
        pytest.skip(f"lacks the ability to use {program}: {error}")
    assert barriers(host) == {}
    host.run(program, "-P", "FORWARD", "DROP")
    ((name, remedy),) = barriers(host).items()
    assert "FORWARD" in name
    host.run("sh", "-ec", remedy)
    host.run(program, "-A", "FORWARD", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")  # the policy still comes last
    assert barriers(host) == {}
    assert list(barriers(host, "crishim1")) == [name]
    host.run(program, "-D", "FORWARD", "-o", "crishim0", "-j", "ACCEPT")  # half of the way is not enough
    assert list(barriers(host)) == [name]
    assert "-A FORWARD -i crishim0 -j ACCEPT" in host.run(program, "-S", "FORWARD")


def test_the_remedy_lets_pods_out() -> None:
    need_network_namespaces()
    need_program("iptables", "iptables")
    world = World()
    try:
        world.host.ip("link add br0 type bridge")
        world.host.ip("addr add 10.206.7.1/24 dev br0")
        world.host.ip("link set br0 up")
        pod = world.pod()
        world.host.ip("link add v0 type veth peer name eth0")
        world.host.run("ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{pod.fd}")
        world.host.ip("link set v0 master br0 up")
        pod.ip("addr add 10.206.7.2/24 dev eth0")
        pod.ip("link set eth0 up")
        pod.ip("route add default via 10.206.7.1")
        world.outside.ip("route add 10.206.7.0/24 via 192.0.2.1")
        world.host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        world.host.run("iptables", "-P", "FORWARD", "DROP")
        with pytest.raises(TimeoutError):
            ask(pod, world.outside_ips[0], 80)
        for remedy in barriers(world.host, "br0").values():
            world.host.run("sh", "-ec", remedy)
        with pytest.raises(ConnectionRefusedError):  # nobody listens there, but the way is free
            ask(pod, world.outside_ips[0], 80)
    finally:
        world.close()


def test_what_the_network_needs_is_there_and_trying_leaves_nothing(host: Namespace) -> None:
    with inside(host.fd):
        assert probe.lacks(SUBNETS) == ()
    assert "probe" not in host.run("ip", "link")
    assert host.run("nft", "list", "ruleset") == ""


def test_a_need_that_is_not_met_is_named(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KernelError("create bridge probe0", 95)

    monkeypatch.setattr(probe, "_try_bridge", refuse)
    with inside(host.fd):
        (lack,) = probe.lacks(SUBNETS) or ()
    assert lack.need == "bridge"
    assert "Operation not supported" in lack.problem
    assert "modprobe bridge" in lack.remedy


def test_bridge_tables_are_no_condition(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KernelError("create nftables chain probe ports", 2)

    monkeypatch.setattr(probe, "_try_guard", refuse)
    with inside(host.fd):
        (lack,) = probe.lacks(SUBNETS) or ()
    assert lack.optional
    assert lack.need == "pods' own addresses"
    assert "CONFIG_NF_TABLES_BRIDGE" in lack.remedy


def test_a_cut_answer_is_no_policy() -> None:
    assert xtables.parse_chain(4, bytes(84), b"") == ("", frozenset())
    assert xtables.parse_chain(6, bytes(84), bytes(400)) == ("", frozenset())
