"""Forged frames of a pod: none reaches a neighbour, the host or the bridge's own table; real sockets, real frames.

After each forged frame the attacker sends a plain packet; when that one is there, the forged one was there or is gone.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from crishim.errors import KernelError
from crishim.linux.nft import transaction
from crishim.network import embedded
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.network.model import Attachment, AttachRequest
from crishim.network.plan import hardware_address
from crishim.network.settings import NetworkSettings
from tests.fakes.daemon import Counting
from tests.integration.network_topology import Pod, Service, World, ask, inside, need_network_namespaces
from tests.support.abilities import need_program
from tests.support.frames import ARP, IPV4, IPV6, advertisement, arp, frame, ipv4, router, send_all, udp6

TCP = socket.SOCK_STREAM
V6 = socket.AF_INET6
BRIDGE = "cts0"
SETTINGS = NetworkSettings(BRIDGE, ("10.209.7.0/24", "fd00:209:7::/64"))
GATEWAYS = ("10.209.7.1", "fd00:209:7::1")
MARK = b"mark"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    need_network_namespaces()
    need_program("nft", "nftables")
    monkeypatch.setattr(embedded, "_REPAIR_SECONDS", 0.0)
    made = World()
    yield made
    made.close()


@dataclass
class Party:
    """A pod of the scene: where it is, and what it was given."""

    where: Pod
    given: Attachment

    @property
    def mac(self) -> str:
        return self.given.mac

    @property
    def ips(self) -> tuple[str, ...]:
        return self.given.ips

    def knows(self, address: str) -> str:
        """Return the hardware address that the pod's kernel has for a neighbour."""
        found = re.search(r"lladdr (\S+)", self.where.run("ip", "neigh", "show", address))
        return found[1] if found else ""

    def forget(self, address: str) -> None:
        self.where.run("ip", "neigh", "del", address, "dev", "eth0", check=False)

    def received(self, port: int, family: int = socket.AF_INET) -> socket.socket:
        made = self.where.socket(socket.SOCK_DGRAM, family)
        if family == V6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", port))
        return made


@dataclass
class Scene:
    """An attacker, a victim and a third pod on a dual-stack network."""

    world: World
    network: EmbeddedNetwork
    evil: Party
    victim: Party
    third: Party

    def send(self, *frames: bytes) -> None:
        """Send forged frames, then a plain packet to the victim, and wait for that one."""
        plain = ipv4(self.evil.ips[0], self.victim.ips[0], 9, MARK)
        with self.victim.received(9) as arrived, inside(self.evil.where.fd):
            send_all("eth0", *frames, frame(self.victim.mac, self.evil.mac, IPV4, plain))
            assert arrived.recv(100) == MARK


def run(world: World, story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        network = EmbeddedNetwork(SETTINGS, MemoryLeases())
        await network.start()
        parties = []
        for _ in range(3):
            pod = world.pod()
            parties.append(Party(pod, await network.attach(pod.netns, AttachRequest(pod.id))))
        scene = Scene(world, network, *parties)
        try:
            await story(scene)
        finally:
            await scene.network.reconcile(frozenset())
            await scene.network.shutdown(remove=True)
        assert world.host.run("nft", "list", "ruleset") == ""

    with inside(world.host.fd):
        asyncio.run(whole())


def play(world: World, story: Callable[[Scene], None]) -> None:
    """Run a story that blocks, while the third pod serves."""

    async def whole(scene: Scene) -> None:
        with Service(scene.third.where, TCP, 80, "third"), Service(scene.third.where, TCP, 80, "third", V6):
            await asyncio.to_thread(story, scene)

    run(world, whole)


TAGS = {
    "plain": b"",
    "priority tag": b"\x81\x00\x00\x00",
    "two priority tags": b"\x81\x00\x00\x00\x81\x00\x00\x00",
    "provider tag": b"\x88\xa8\x00\x00\x81\x00\x00\x00",
}


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("operation", [1, 2])
def test_arp_cannot_take_a_neighbours_or_the_gateways_address(world: World, operation: int, tags: str) -> None:
    def story(scene: Scene) -> None:
        evil, victim = scene.evil, scene.victim
        for address in (scene.third.ips[0], GATEWAYS[0]):
            victim.forget(address)
            hold = [arp(1, (evil.mac, address), ("00:00:00:00:00:00", victim.ips[0]))]
            if operation == 2:
                hold.append(arp(2, (evil.mac, address), (victim.mac, victim.ips[0])))
            scene.send(*(frame(victim.mac, evil.mac, ARP, one, TAGS[tags]) for one in hold))
            assert victim.knows(address) != evil.mac
        assert ask(victim.where, scene.third.ips[0], 80) == f"third {victim.ips[0]}"
        # nor with the neighbour's own name in the message, and another's hardware address
        mixed = arp(1, (scene.third.mac, evil.ips[0]), (victim.mac, victim.ips[0]))
        scene.send(frame("ff:ff:ff:ff:ff:ff", evil.mac, ARP, mixed))
        assert victim.knows(evil.ips[0]) in {"", evil.mac}

    play(world, story)


def test_arp_cannot_take_a_pods_address_from_the_host(world: World) -> None:
    def story(scene: Scene) -> None:
        host, evil, third = scene.world.host, scene.evil, scene.third
        host.run("ip", "neigh", "del", third.ips[0], "dev", BRIDGE, check=False)
        own = hardware_address(GATEWAYS[0])
        scene.send(frame(own, evil.mac, ARP, arp(1, (evil.mac, third.ips[0]), ("00:00:00:00:00:00", GATEWAYS[0]))))
        assert evil.mac not in host.run("ip", "neigh", "show", third.ips[0])

    play(world, story)


def test_neighbour_discovery_cannot_take_an_address(world: World) -> None:
    def story(scene: Scene) -> None:
        evil, victim, third = scene.evil, scene.victim, scene.third
        local = re.search(r"fe80::\S+(?=/64)", evil.where.run("ip", "-6", "addr", "show", "eth0"))
        assert local is not None
        for address, right in ((third.ips[1], third.mac), (GATEWAYS[1], hardware_address(GATEWAYS[0]))):
            with contextlib.suppress(ConnectionRefusedError):
                ask(victim.where, address, 80)
            for source in (evil.ips[1], local[0], address):
                forged = advertisement(source, victim.ips[1], address, evil.mac)
                scene.send(frame(victim.mac, evil.mac, IPV6, forged))
                assert victim.knows(address) == right
        assert ask(victim.where, third.ips[1], 80) == f"third {victim.ips[1]}"

    play(world, story)


def test_a_pod_is_no_router_to_others(world: World) -> None:
    def story(scene: Scene) -> None:
        evil, victim = scene.evil, scene.victim
        victim.where.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra")
        local = re.search(r"fe80::\S+(?=/64)", evil.where.run("ip", "-6", "addr", "show", "eth0"))
        assert local is not None
        scene.send(frame("33:33:00:00:00:01", evil.mac, IPV6, router(local[0])))
        assert "fd66" not in victim.where.run("ip", "-6", "addr") + victim.where.run("ip", "-6", "route")

    play(world, story)


def test_a_source_address_cannot_be_anothers(world: World) -> None:
    def story(scene: Scene) -> None:
        evil, victim, third = scene.evil, scene.victim, scene.third
        with victim.received(7) as four, victim.received(7, V6) as six:
            scene.send(
                frame(victim.mac, evil.mac, IPV4, ipv4(third.ips[0], victim.ips[0], 7, b"forged")),
                frame(victim.mac, evil.mac, IPV4, ipv4("203.0.113.7", victim.ips[0], 7, b"forged")),
                frame(victim.mac, third.mac, IPV4, ipv4(evil.ips[0], victim.ips[0], 7, b"forged")),
                frame(victim.mac, evil.mac, IPV6, udp6(third.ips[1], victim.ips[1], 7, b"forged")),
                frame(victim.mac, evil.mac, IPV4, ipv4(evil.ips[0], victim.ips[0], 7, b"four")),
                frame(victim.mac, evil.mac, IPV6, udp6(evil.ips[1], victim.ips[1], 7, b"six")),
            )
            assert (four.recv(100), six.recv(100)) == (b"four", b"six")

    play(world, story)


def test_a_hardware_address_cannot_be_anothers(world: World) -> None:
    def story(scene: Scene) -> None:
        evil, victim = scene.evil, scene.victim
        other = hardware_address("10.209.7.99")  # the next pod's, perhaps: the bridge would send its frames here
        scene.send(
            frame(victim.mac, other, IPV4, ipv4(evil.ips[0], victim.ips[0], 7, b"x")),
            frame(victim.mac, other, 0x88B5, bytes(46)),
        )
        learned = scene.world.host.run("bridge", "fdb", "show", "br", BRIDGE)
        assert evil.mac in learned
        assert other not in learned

    play(world, story)


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table bridge {0}",
        "nft flush chain bridge {0} ports",
        "nft flush set bridge {0} own4",
        "nft flush set bridge {0} own6",
        "nft delete table bridge {0}; nft add table bridge {0}",
        "nft flush ruleset",
    ],
)
def test_what_someone_takes_out_of_the_table_comes_back(world: World, damage: str) -> None:
    async def story(scene: Scene) -> None:
        before = table(world)
        world.host.run("sh", "-ec", damage.format(SETTINGS.table_name))
        assert table(world) != before
        async with asyncio.timeout(60):
            while table(world) != before:
                scene.network.ready()
                await asyncio.sleep(0.01)

    run(world, story)


def test_exactly_the_pods_that_live_may_send(world: World) -> None:
    async def story(scene: Scene) -> None:
        before = table(world)
        leases = scene.network._ipam._leases
        await scene.network.shutdown(remove=False)
        scene.network = EmbeddedNetwork(SETTINGS, leases)
        await scene.network.start()
        assert table(world) == before
        await scene.network.reconcile(frozenset({scene.evil.where.id}))
        async with asyncio.timeout(60):
            while len(left := [word for word in table(world) if word.startswith("0a:58")]) != 4:
                await asyncio.sleep(0.01)
        assert set(left) == {scene.evil.mac}

    run(world, story)


def table(world: World) -> list[str]:
    """Return the table's words in an order of their own: a hash's says nothing."""
    shown = world.host.run("nft", "list", "table", "bridge", SETTINGS.table_name, check=False)
    return sorted(shown.replace(",", " ").split())


def test_a_kernel_without_bridge_tables_still_serves_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = transaction.commit

    def refuse(connection: Any, requests: Any) -> None:
        # what a kernel without CONFIG_NF_TABLES_BRIDGE answers to the chain
        if any(request.payload[:1] == b"\x07" for request in requests):
            raise KernelError("create nftables chain ports", 2)
        commit(connection, requests)

    monkeypatch.setattr(transaction, "commit", refuse)

    async def whole() -> None:
        network, counting = EmbeddedNetwork(SETTINGS, MemoryLeases()), Counting()
        await network.start()
        network.observe(counting)
        assert counting.lacks == ["pod_addresses"]
        one, two = world.pod(), world.pod()
        ips = [(await network.attach(pod.netns, AttachRequest(pod.id))).ips for pod in (one, two)]
        with Service(two, TCP, 80, "two"):
            assert await asyncio.to_thread(ask, one, ips[1][0], 80) == f"two {ips[0][0]}"
        assert network.ready()[0]
        await network.reconcile(frozenset())
        await network.shutdown(remove=True)

    with inside(world.host.fd):
        asyncio.run(whole())
