"""What other programs take away is made again, and pods that run are reached again: bridge, places on it, table."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from crishim.errors import FailedPreconditionError, KernelError
from crishim.ids import new_id
from crishim.network import embedded
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.network.model import Attachment, AttachRequest
from crishim.network.plan import link_name
from crishim.network.settings import NetworkSettings
from crishim.request import PortMapping, Protocol
from tests.integration.network_topology import Pod, Service, World, ask, inside, need_network_namespaces
from tests.support.abilities import need_program

TCP = socket.SOCK_STREAM
V6 = socket.AF_INET6
BRIDGE = "ctr0"
TABLE = f"crishim-{BRIDGE}"
SETTINGS = NetworkSettings(BRIDGE, ("10.204.7.0/24", "fd00:204:7::/64"))
PORTS = (PortMapping(Protocol.TCP, 80, 8080), PortMapping(Protocol.TCP, 80, 8081, "192.0.2.1"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    need_network_namespaces()
    need_program("nft", "nftables")
    monkeypatch.setattr(embedded, "_REPAIR_SECONDS", 0.0)  # look each time that readiness is asked for
    made = World()
    yield made
    made.close()


@dataclass
class Scene:
    """Two pods, the first with published ports and a server, on a network."""

    world: World
    network: EmbeddedNetwork
    web: Pod
    other: Pod
    given: Attachment

    async def ask(self, where: Any, address: str, port: int) -> str:
        return await asyncio.to_thread(ask, where, address, port)

    async def reached(self) -> bool:
        """Tell whether the pod is reached in every way, asking for readiness as kubelet does."""
        self.network.ready()
        try:
            for ip in self.given.ips:
                await self.ask(self.other, ip, 80)
                await self.ask(self.world.host, ip, 80)
            for address, port in (("192.0.2.1", 8080), ("2001:db8::1", 8080), ("192.0.2.1", 8081)):
                await self.ask(self.world.outside, address, port)
                await self.ask(self.other, address, port)
            await self.ask(self.world.host, "127.0.0.1", 8080)
            await self.ask(self.other, self.world.outside_ips[0], 80)
        except OSError:
            return False
        return self.network.ready()[0]

    async def recovers(self) -> None:
        async with asyncio.timeout(60):
            while not await self.reached():
                await asyncio.sleep(0.05)


def play(world: World, story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        network = EmbeddedNetwork(SETTINGS, MemoryLeases())
        await network.start()
        web, other = world.pod(), world.pod()
        given = await network.attach(web.netns, AttachRequest(web.id, "web", "test", "", PORTS))
        await network.attach(other.netns, AttachRequest(other.id))
        with (
            Service(web, TCP, 80, "web"),
            Service(web, TCP, 80, "web", V6),
            Service(world.outside, TCP, 80, "out"),
        ):
            scene = Scene(world, network, web, other, given)
            assert await scene.reached()
            try:
                await story(scene)
                await scene.recovers()
            finally:
                await scene.network.reconcile(frozenset())
                await scene.network.shutdown(remove=True)
        assert world.host.run("nft", "list", "ruleset") == ""
        assert len(world.host.run("ip", "-o", "link", "show", "type", "veth").splitlines()) == 1  # the uplink

    with inside(world.host.fd):
        asyncio.run(whole())


@pytest.mark.parametrize(
    "damage",
    [
        f"ip link del {BRIDGE}",
        f"ip link del {BRIDGE}; nft flush ruleset",
        f"ip link del {BRIDGE}; ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up",
        f"ip link set {BRIDGE} down",
        f"ip addr flush dev {BRIDGE}",
        "for link in /sys/class/net/v*; do ip link set ${link##*/} nomaster; done",
        "for link in /sys/class/net/v*; do ip link set ${link##*/} down; done",
        f"echo 0 >/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        "nft flush ruleset",
        f"nft flush table inet {TABLE}",
        f"nft flush chain inet {TABLE} prerouting",
        f"nft flush map inet {TABLE} any4; nft flush map inet {TABLE} given4",
        f"nft flush set inet {TABLE} any4-tcp",
        f"nft flush set bridge {TABLE} own4; nft flush set bridge {TABLE} own6",
        f"nft delete table inet {TABLE}; nft add table inet {TABLE}",
    ],
)
def test_damage_is_mended_while_pods_run(world: World, damage: str) -> None:
    async def story(scene: Scene) -> None:
        shown = f"mount -t sysfs sysfs /sys; {damage}"  # links of this namespace; names of the pods' begin with v
        scene.world.host.run("unshare", "--mount", "sh", "-c", shown)

    play(world, story)


def test_a_bridge_that_went_while_no_daemon_ran(world: World) -> None:
    async def story(scene: Scene) -> None:
        leases = scene.network._ipam._leases
        gone = new_id()
        await scene.network.shutdown(remove=False)
        dead = link_name(BRIDGE, gone)  # of a pod that nobody knows any more
        scene.world.host.run("ip", "link", "add", dead, "type", "veth", "peer", "name", "other9")
        scene.world.host.ip(f"link del {BRIDGE}")
        scene.network = EmbeddedNetwork(SETTINGS, leases)
        await scene.network.start()
        assert await scene.network.reconcile(frozenset({scene.web.id, scene.other.id})) == 1
        assert dead not in scene.world.host.run("ip", "link")

    play(world, story)


def test_a_repair_that_fails_is_tried_again_with_all_pods(world: World) -> None:
    async def story(scene: Scene) -> None:
        host = scene.world.host
        host.ip("addr add 10.204.7.99/32 dev up0")
        host.ip(f"link del {BRIDGE}")
        async with asyncio.timeout(20):
            while scene.network.ready()[0]:
                await asyncio.sleep(0.01)
        assert "is used by up0" in scene.network.ready()[2]
        host.ip("addr del 10.204.7.99/32 dev up0")

    play(world, story)


@pytest.mark.parametrize("damage", [f"ip link del {BRIDGE}", "nft flush ruleset"])
def test_an_attach_that_finds_damage_has_it_mended(world: World, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    async def story(scene: Scene) -> None:
        monkeypatch.setattr(embedded, "_REPAIR_SECONDS", 3600.0)  # nobody asks for readiness
        scene.world.host.run("sh", "-c", damage)
        late = scene.world.pod()
        request = AttachRequest(late.id, "late", "test", "", (PortMapping(Protocol.TCP, 80, 8082),))
        async with asyncio.timeout(30):
            while True:
                try:
                    await scene.network.attach(late.netns, request)
                except KernelError:
                    assert "ruleset" not in damage  # tables that are gone are made within the call
                    await asyncio.sleep(0.05)  # as kubelet would: again, a little later
                else:
                    break
        with Service(late, TCP, 80, "late"):
            assert (await scene.ask(scene.world.outside, "192.0.2.1", 8082)).startswith("late ")

    play(world, story)


def test_a_bridge_of_another_instance_is_refused(world: World) -> None:
    async def whole() -> None:
        first = EmbeddedNetwork(replace(SETTINGS, owner="/var/lib/first"), MemoryLeases())
        await first.start()
        pod = world.pod()
        await first.attach(pod.netns, AttachRequest(pod.id))
        for again in (False, True):  # while it runs, and while it is down
            second = EmbeddedNetwork(replace(SETTINGS, owner="/var/lib/second"), MemoryLeases())
            await second.start()
            reason = second.ready()[2]
            assert f"bridge {BRIDGE} belongs to the instance with root /var/lib/first; choose another" in reason
            with pytest.raises(FailedPreconditionError, match="belongs to the instance"):
                await second.reconcile(frozenset())
            await second.shutdown(remove=True)
            assert pod.id[:10] in world.host.run("ip", "link")
            if not again:
                await first.shutdown(remove=False)
        later = EmbeddedNetwork(replace(SETTINGS, owner="/var/lib/first"), MemoryLeases())
        await later.start()
        assert later.ready()[0]
        assert await later.reconcile(frozenset()) == 1
        await later.shutdown(remove=True)
        world.host.ip(f"link add {BRIDGE} type bridge")  # a person's own, without a mark: adopted, and marked
        adopted = EmbeddedNetwork(replace(SETTINGS, owner="/" + "d" * 300), MemoryLeases())
        await adopted.start()
        await adopted.shutdown(remove=False)
        assert f"alias crishim /{'d' * 246}" in world.host.run("ip", "link", "show", BRIDGE)
        adopted = EmbeddedNetwork(replace(SETTINGS, owner="/" + "d" * 300), MemoryLeases())
        await adopted.start()
        assert adopted.ready()[0]
        await adopted.shutdown(remove=True)

    with inside(world.host.fd):
        asyncio.run(whole())


def test_what_is_whole_is_left_alone(world: World) -> None:
    async def story(scene: Scene) -> None:
        handles = scene.world.host.run("nft", "-a", "list", "table", "inet", TABLE)
        index = scene.world.host.run("ip", "-o", "link", "show", BRIDGE)
        scene.world.host.run("nft", "add", "table", "inet", "foreign")  # a change that is not about us
        assert await scene.network._work(scene.network._kernel.repair, scene.network._ports.all(), ()) == []
        assert scene.world.host.run("nft", "-a", "list", "table", "inet", TABLE) == handles
        assert scene.world.host.run("ip", "-o", "link", "show", BRIDGE) == index
        scene.world.host.run("nft", "delete", "table", "inet", "foreign")

    play(world, story)
