"""Real traffic through the embedded network: between pods, out through NAT, in through published ports."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from crishim.linux.netlink import conntrack
from crishim.linux.netlink.connection import NETFILTER, Connection
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.network.model import AttachRequest
from crishim.network.settings import NetworkSettings
from crishim.request import PortMapping, Protocol
from tests.integration.network_topology import Pod, Service, World, ask, inside, need_network_namespaces
from tests.support.frames import IPV4, frame, ipv4, send_all

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V6 = socket.AF_INET6
SUBNETS = ("10.201.7.0/24", "fd00:201:7::/64")


@pytest.fixture
def world() -> Iterator[World]:
    need_network_namespaces()
    made = World()
    yield made
    made.close()


def play(world: World, story: Callable[[EmbeddedNetwork], Coroutine[Any, Any, None]]) -> None:
    """Run a story with a dual-stack network on the world's host; afterwards nothing of it may be left there."""

    async def whole() -> None:
        network = EmbeddedNetwork(NetworkSettings("ctn0", SUBNETS), MemoryLeases())
        await network.start()
        assert network.ready() == (True, "", "")
        try:
            await story(network)
        finally:
            await network.reconcile(frozenset())
            await network.shutdown(remove=True)

    with inside(world.host.fd):
        asyncio.run(whole())
    assert world.host.run("nft", "list", "ruleset") == ""
    assert "ctn0" not in world.host.run("ip", "link")


async def attach(network: EmbeddedNetwork, pod: Pod, *ports: PortMapping, name: str = "") -> tuple[str, ...]:
    return (await network.attach(pod.netns, AttachRequest(pod.id, name, "test", "", ports))).ips


async def call(*arguments: Any, **options: Any) -> str:
    return await asyncio.to_thread(ask, *arguments, **options)


def test_pods_reach_each_other_under_their_own_addresses(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        one, two = world.pod(), world.pod()
        ips_one, ips_two = await attach(network, one), await attach(network, two)
        with Service(two, TCP, 80, "two"), Service(two, UDP, 53, "two-udp"), Service(two, TCP, 80, "two-six", V6):
            assert await call(one, ips_two[0], 80) == f"two {ips_one[0]}"
            assert await call(one, ips_two[0], 53, UDP) == f"two-udp {ips_one[0]}"
            assert await call(one, ips_two[1], 80) == f"two-six {ips_one[1]}"
            assert await call(two, "127.0.0.1", 80) == "two 127.0.0.1"

    play(world, story)


def test_outside_sees_the_host_as_the_source(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        pod = world.pod()
        await attach(network, pod)
        with Service(world.outside, TCP, 80, "out"), Service(world.outside, TCP, 80, "out", V6):
            for theirs, ours in zip(world.outside_ips, world.host_ips, strict=True):
                assert await call(pod, theirs, 80) == f"out {ours}"

    play(world, story)


@pytest.mark.parametrize("bridged", ["0", "1"])
def test_a_published_port_is_reached_from_everywhere(world: World, bridged: str) -> None:
    # with br_netfilter, frames between two ports of a bridge pass netfilter too, and take other ways
    if "bridge" in world.host.run("ls", "/proc/sys/net"):
        world.host.run("sh", "-c", f"echo {bridged} >/proc/sys/net/bridge/bridge-nf-call-iptables")
        world.host.run("sh", "-c", f"echo {bridged} >/proc/sys/net/bridge/bridge-nf-call-ip6tables")

    async def story(network: EmbeddedNetwork) -> None:
        web, other = world.pod(), world.pod()
        ips = await attach(network, web, PortMapping(Protocol.TCP, 80, 8080), PortMapping(Protocol.UDP, 53, 5353))
        neighbour = await attach(network, other)
        gateway = "10.201.7.1"
        with Service(web, TCP, 80, "web"), Service(web, TCP, 80, "web", V6), Service(web, UDP, 53, "dns"):
            # from the host: loopback needs NAT of the source, its other addresses do not
            assert await call(world.host, "127.0.0.1", 8080) == f"web {gateway}"
            assert await call(world.host, "127.0.0.1", 5353, UDP) == f"dns {gateway}"
            assert (await call(world.host, world.host_ips[0], 8080)).startswith("web ")
            assert (await call(world.host, world.host_ips[1], 8080)).startswith("web ")
            # from outside: the pod sees the caller itself
            for theirs, ours in zip(world.outside_ips, world.host_ips, strict=True):
                assert await call(world.outside, ours, 8080) == f"web {theirs}"
            assert await call(world.outside, world.host_ips[0], 5353, UDP) == f"dns {world.outside_ips[0]}"
            # from another pod and from the pod itself, by an address of the host and by the bridge's
            for pod in (other, web):
                for address in (world.host_ips[0], gateway):
                    assert await call(pod, address, 8080) == f"web {gateway}"
                assert await call(pod, world.host_ips[1], 8080) == "web fd00:201:7::1"
            assert await call(other, ips[0], 80) == f"web {neighbour[0]}"
        # ::1 is refused at once, so that `localhost` falls back to 127.0.0.1
        with pytest.raises(ConnectionRefusedError):
            await call(world.host, "::1", 8080)

    play(world, story)


def test_a_given_host_address_wins_and_others_stay_closed(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        local, wide, six = world.pod(), world.pod(), world.pod()
        await attach(network, local, PortMapping(Protocol.TCP, 80, 8080, "127.0.0.1"))
        await attach(
            network, wide, PortMapping(Protocol.TCP, 80, 8080), PortMapping(Protocol.TCP, 80, 8081, "192.0.2.1")
        )
        await attach(network, six, PortMapping(Protocol.TCP, 80, 8082, "::"))
        with Service(local, TCP, 80, "local"), Service(wide, TCP, 80, "wide"), Service(six, TCP, 80, "six", V6):
            assert (await call(world.host, "127.0.0.1", 8080)).startswith("local ")
            assert (await call(world.outside, "192.0.2.1", 8080)).startswith("wide ")
            assert (await call(world.outside, "192.0.2.1", 8081)).startswith("wide ")
            assert (await call(world.outside, "2001:db8::1", 8082)).startswith("six ")
            with pytest.raises(ConnectionRefusedError):
                await call(world.host, "127.0.0.1", 8081)
            with pytest.raises(ConnectionRefusedError):
                await call(world.host, "127.0.0.1", 8082)

    play(world, story)


def test_a_pod_never_reaches_the_hosts_loopback(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        pod = world.pod()
        await attach(network, pod)
        pod.ip("link set lo down")
        pod.ip("route add 127.0.0.1/32 via 10.201.7.1 dev eth0")
        pod.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet")
        pod.ip("route flush table local")
        pod.ip("route add local 10.201.7.2/32 dev eth0 table local")
        heard = world.host.socket(UDP)
        heard.bind(("127.0.0.1", 7777))
        heard.settimeout(0.3)
        with heard, pod.socket(UDP) as caller:
            caller.sendto(b"knock", ("127.0.0.1", 7777))
            with pytest.raises(TimeoutError):
                heard.recv(100)
        # the packets did arrive at the bridge and were dropped there
        assert "10.201.7.1" in pod.run("ip", "neigh")

    play(world, story)


def test_a_neighbour_on_the_wire_does_not_reach_ports_of_the_hosts_loopback(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        pod = world.pod()
        await attach(
            network, pod, PortMapping(Protocol.UDP, 53, 5353, "127.0.0.1"), PortMapping(Protocol.UDP, 53, 5354)
        )
        mac = json.loads(world.host.run("ip", "-j", "link", "show", "up0"))[0]["address"]
        theirs, ours = world.outside_ips[0], world.host_ips[0]
        heard = pod.socket(UDP)
        heard.bind(("", 53))
        with heard, inside(world.outside.fd):
            packets = (
                ipv4(theirs, "127.0.0.1", 5353, b"loopback"),
                ipv4(theirs, "127.0.0.1", 5354, b"loopback"),
                ipv4("127.0.0.1", ours, 5354, b"loopback"),
                ipv4(theirs, ours, 5354, b"published"),
            )
            send_all("up1", *(frame(mac, mac, IPV4, packet) for packet in packets))
            assert heard.recv(100) == b"published"
        with Service(pod, UDP, 53, "pod"):
            assert await call(world.host, "127.0.0.1", 5353, UDP) == "pod 10.201.7.1"

    play(world, story)


def test_a_device_of_a_vrf_keeps_its_loopback_addresses(world: World) -> None:
    """As for ::1, the kernel's own rule: what a VRF's device carries is local (networking/vrf in its documentation)."""

    async def story(network: EmbeddedNetwork) -> None:
        assert network.ready()[0]
        world.host.run("ip", "link", "add", "blue", "type", "vrf", "table", "10", check=False)
        if "blue" not in world.host.run("ip", "link"):
            pytest.skip("lacks the ability to make VRF devices (modprobe vrf)")
        world.host.ip("addr add 127.0.0.1/8 dev blue")
        world.host.ip("link set blue up")
        heard, caller = world.host.socket(UDP), world.host.socket(UDP)
        for made in (heard, caller):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"blue")
        heard.bind(("127.0.0.1", 7777))
        with heard, caller:
            caller.sendto(b"knock", ("127.0.0.1", 7777))
            assert heard.recv(100) == b"knock"

    play(world, story)


def test_what_another_program_translates_keeps_its_source(world: World) -> None:
    """kube-proxy's way: a service's address or a node's port leads to a pod, and the server sees the client."""
    need_bridge_netfilter(world)

    async def story(network: EmbeddedNetwork) -> None:
        web, client = world.pod(), world.pod()
        # both are published, at the service's port as well: what decides is who translated
        ips = await attach(
            network, web, PortMapping(Protocol.TCP, 80, 80), PortMapping(Protocol.TCP, 80, 8080, "192.0.2.1")
        )
        seen = await attach(network, client)
        for family, kind, service, node in (
            ("ip", 0, "10.96.0.10", "192.0.2.1"),
            ("ip6", 1, "fd00:96::a", "2001:db8::1"),
        ):
            chain = "{ type nat hook prerouting priority -101; }"
            target = f"[{ips[1]}]:80" if kind else f"{ips[0]}:80"
            world.host.run("nft", "add", "table", family, "proxy")
            world.host.run("nft", "add", "chain", family, "proxy", "pre", chain)
            for address, port in ((service, 80), (service, 8080), (node, 30080)):
                rule = f"add rule {family} proxy pre {family} daddr {address} tcp dport {port} dnat to {target}"
                world.host.run("nft", *rule.split())
        with Service(web, TCP, 80, "web"), Service(web, TCP, 80, "web", V6):
            for address, port, caller in (
                ("10.96.0.10", 80, seen[0]),
                ("10.96.0.10", 8080, seen[0]),
                ("192.0.2.1", 30080, seen[0]),
                ("fd00:96::a", 80, seen[1]),
                ("2001:db8::1", 30080, seen[1]),
                # ours, by each way of publishing: masqueraded, so that it works without br_netfilter too
                ("192.0.2.1", 80, "10.201.7.1"),
                ("192.0.2.1", 8080, "10.201.7.1"),
                ("2001:db8::1", 80, "fd00:201:7::1"),
            ):
                assert await call(client, address, port) == f"web {caller}", (address, port)
        for family in ("ip", "ip6"):
            world.host.run("nft", "delete", "table", family, "proxy")

    play(world, story)


def need_bridge_netfilter(world: World) -> None:
    """Let frames between ports of a bridge pass netfilter, as kube-proxy's users have to."""
    if "bridge" not in world.host.run("ls", "/proc/sys/net"):
        pytest.skip("lacks br_netfilter (modprobe br_netfilter)")
    for name in ("iptables", "ip6tables"):
        world.host.run("sh", "-c", f"echo 1 >/proc/sys/net/bridge/bridge-nf-call-{name}")


def test_udp_from_a_fixed_port_reaches_the_pod_that_took_over(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        port = PortMapping(Protocol.UDP, 53, 9999)
        with Service(world.host, UDP, 9999, "host"):
            assert await call(world.outside, "192.0.2.1", 9999, UDP, source=4000) == "host 192.0.2.2"
        first, second = world.pod(), world.pod()
        await attach(network, first, port)
        with Service(first, UDP, 53, "first"):
            assert await call(world.outside, "192.0.2.1", 9999, UDP, source=4000) == "first 192.0.2.2"
            await network.detach(first.id, None)
            await attach(network, second, port)
            with Service(second, UDP, 53, "second"):
                assert await call(world.outside, "192.0.2.1", 9999, UDP, source=4000) == "second 192.0.2.2"

    play(world, story)


def test_flows_of_other_ports_and_addresses_are_left_alone(world: World) -> None:
    """Several UDP ports of one pod are looked up in one walk: only what was published is forgotten."""

    async def story(network: EmbeddedNetwork) -> None:
        pod = world.pod()
        ports = (
            PortMapping(Protocol.UDP, 53, 9999),
            PortMapping(Protocol.UDP, 53, 9998, "192.0.2.1"),
            PortMapping(Protocol.UDP, 53, 9996, "::"),
        )
        callers = [("192.0.2.1", port) for port in (9999, 9998, 9997)] + [
            ("2001:db8::1", port) for port in (9996, 9997)
        ]
        with (
            Service(world.host, UDP, 9999, "host"),
            Service(world.host, UDP, 9998, "host"),
            Service(world.host, UDP, 9997, "host"),
            Service(world.host, UDP, 9996, "host", V6),
            Service(world.host, UDP, 9997, "host", V6),
        ):
            world.host.run("nft", "add", "table", "inet", "track")
            world.host.run("nft", "add", "rule", *_tracking(world))
            for address, port in callers:
                assert (await call(world.outside, address, port, UDP, source=4000)).startswith("host ")
            await attach(network, pod, *ports)
            with Service(pod, UDP, 53, "pod"), Service(pod, UDP, 53, "pod", V6):
                answers = [(await call(world.outside, a, p, UDP, source=4000)).split()[0] for a, p in callers]
                assert answers == ["pod", "pod", "host", "pod", "host"]
                assert _tracked(world) == {9996, 9997, 9998, 9999}
                await network.detach(pod.id, None)
                assert _tracked(world) == {9997}
        world.host.run("nft", "delete", "table", "inet", "track")

    play(world, story)


def _tracking(world: World) -> tuple[str, ...]:
    chain = "{ type filter hook prerouting priority 0; }"
    world.host.run("nft", "add", "chain", "inet", "track", "c", chain)
    return "inet", "track", "c", "ct", "state", "new", "counter"


def _tracked(world: World) -> set[int]:
    """Return the ports that tracked UDP flows from outside went to first."""
    with inside(world.host.fd), Connection(NETFILTER) as connection:
        flows = [flow for family in (2, 10) for flow in connection.dump(conntrack.list_udp(family))]
    return {conntrack.destination(flow.payload)[1] for flow in flows} & set(range(9990, 10000))


def test_counters_are_the_pods_view(world: World) -> None:
    async def story(network: EmbeddedNetwork) -> None:
        one, two = world.pod(), world.pod()
        await attach(network, one)
        ips = await attach(network, two)
        receiver = two.socket(UDP)
        receiver.bind(("", 9))
        with receiver, one.socket(UDP) as sender:
            for _ in range(20):
                sender.sendto(bytes(1000), (ips[0], 9))
                receiver.recv(2000)
        stats = network.interface_stats()
        assert set(stats) == {one.id, two.id}
        assert stats[one.id].name == "eth0"
        assert stats[one.id].tx_bytes > 20_000 > stats[one.id].rx_bytes
        assert stats[two.id].rx_bytes > 20_000 > stats[two.id].tx_bytes
        inside_pod = two.run("cat", "/proc/net/dev").split("eth0:")[1].split()
        assert stats[two.id].rx_bytes <= int(inside_pod[0])
        await network.detach(one.id, None)
        assert set(network.interface_stats()) == {two.id}

    play(world, story)


def test_two_instances_side_by_side(world: World) -> None:
    async def whole() -> None:
        first = EmbeddedNetwork(NetworkSettings("ctn0", ("10.201.7.0/24",)), MemoryLeases())
        second = EmbeddedNetwork(NetworkSettings("ctn1", ("10.201.8.0/24",)), MemoryLeases())
        for network in (first, second):
            await network.start()
            assert network.ready()[0]
        one, two = world.pod(), world.pod()
        ips_one = await attach(first, one, PortMapping(Protocol.TCP, 80, 8080))
        ips_two = await attach(second, two, PortMapping(Protocol.TCP, 80, 8081))
        with Service(one, TCP, 80, "one"), Service(two, TCP, 80, "two"):
            # neither removes what is the other's
            assert await first.reconcile(frozenset({one.id})) == 0
            assert await second.reconcile(frozenset({two.id})) == 0
            assert (await call(world.outside, "192.0.2.1", 8080)).startswith("one ")
            assert (await call(world.outside, "192.0.2.1", 8081)).startswith("two ")
            assert (await call(one, ips_two[0], 80)).startswith("two ")
            assert (await call(two, ips_one[0], 80)).startswith("one ")
            assert await first.reconcile(frozenset()) > 0
            await first.shutdown(remove=True)
            assert (await call(world.outside, "192.0.2.1", 8081)).startswith("two ")
        await second.reconcile(frozenset())
        await second.shutdown(remove=True)

    with inside(world.host.fd):
        asyncio.run(whole())
    assert world.host.run("nft", "list", "ruleset") == ""
