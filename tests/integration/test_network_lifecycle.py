"""Attach and detach as books and kernel objects: exhaustion, conflicts, failures, restarts, leftovers."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from crishim.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    KernelError,
    ResourceExhaustedError,
)
from crishim.ids import new_id
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.network.model import AttachRequest, PodNetns
from crishim.network.settings import NetworkSettings
from crishim.observe import NullObserver
from crishim.request import PortMapping, Protocol
from tests.integration.network_topology import Namespace, Pod, Service, ask, inside, need_network_namespaces

TCP = socket.SOCK_STREAM
Story = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def host() -> Iterator[Namespace]:
    need_network_namespaces()
    with Namespace() as made:
        made.ip("link set lo up")
        yield made


MADE: list[EmbeddedNetwork] = []


def play(host: Namespace, story: Story) -> None:
    async def whole() -> None:
        try:
            await story()
        finally:
            while MADE:
                await MADE.pop().shutdown(remove=False)

    with inside(host.fd):
        asyncio.run(whole())


def network(leases: MemoryLeases | None = None, subnet: str = "10.202.7.0/24", bridge: str = "ctl0") -> EmbeddedNetwork:
    settings = NetworkSettings(bridge, (subnet,), release_seconds=0.2)
    made = EmbeddedNetwork(settings, leases if leases is not None else MemoryLeases())
    MADE.append(made)
    return made


def elements(host: Namespace) -> int:
    return host.run("nft", "list", "ruleset").count('comment "') - host.run("nft", "list", "tables").count("table")


def links(host: Namespace) -> int:
    return host.run("ip", "link", "show", "type", "veth").count("link/ether")


async def free_again(made: EmbeddedNetwork) -> None:
    """Wait until every address that was let go is free."""
    async with asyncio.timeout(10):
        while any(used for used, _ in made.usage().values()):
            await asyncio.sleep(0.01)


def test_a_small_range_never_runs_dry(host: Namespace) -> None:
    async def story() -> None:
        made = network(subnet="10.202.7.0/28")
        await made.start()
        seen = []
        for _ in range(200):
            with Pod() as pod:
                seen.append((await made.attach(pod.netns, AttachRequest(pod.id))).ips[0])
                await made.detach(pod.id, None)
        # thirteen addresses, used in turn, and then again and again
        assert seen[:13] == [f"10.202.7.{n}" for n in range(2, 15)]
        assert set(seen) == set(seen[:13])
        await free_again(made)
        assert links(host) == 0
        await made.shutdown(remove=True)

    play(host, story)


def test_a_range_that_is_filled_again_and_again(host: Namespace) -> None:
    async def story() -> None:
        made = network(subnet="10.202.7.0/28")
        await made.start()
        for _ in range(12):
            pods = [Pod() for _ in range(13)]
            given = await asyncio.gather(*(made.attach(pod.netns, AttachRequest(pod.id)) for pod in pods))
            assert len({item.ips for item in given}) == 13
            for pod in pods:
                await made.detach(pod.id, None)
                pod.close()
        await free_again(made)
        assert links(host) == 0
        await made.shutdown(remove=True)

    play(host, story)


def test_another_range_for_new_pods_while_old_ones_live(host: Namespace) -> None:
    async def story() -> None:
        leases = MemoryLeases()
        made = network(leases, "10.202.0.0/16")
        await made.start()
        with Pod() as old, Pod() as new, Pod() as newest:
            port = PortMapping(Protocol.TCP, 80, 8080)
            assert (await made.attach(old.netns, AttachRequest(old.id, ports=(port,)))).ips == ("10.202.0.2",)
            with pytest.raises(InvalidArgumentError, match="is no subnet"):
                await made.use_subnets(["10.300.0.0/16"])
            host.ip("link add other0 type veth peer name other1")
            host.ip("addr add 10.203.9.1/24 dev other0")
            with pytest.raises(FailedPreconditionError, match=r"used by other0 \(10\.203\.9\.1/24\)"):
                await made.use_subnets(["10.203.0.0/16"])
            host.ip("link del other0")
            await made.use_subnets(["10.202.7.0/24", "fd00:202:7::/64"])
            given = await made.attach(new.netns, AttachRequest(new.id))
            assert given.ips == ("10.202.7.2", "fd00:202:7::2")
            with Service(old, TCP, 80, "old"), Service(new, TCP, 80, "new"):
                assert await asyncio.to_thread(ask, new, "10.202.0.2", 80) == "old 10.202.7.2"
                assert await asyncio.to_thread(ask, old, "10.202.7.2", 80) == "new 10.202.0.2"
            assert elements(host) == 1
            assert "10.202.0.0/16" in host.run("nft", "list", "table", "inet", "crishim-ctl0")
            await made.shutdown(remove=False)
            # a restart with the new range finds the old one again in its leases
            after = network(leases, "10.202.7.0/24")
            await after.start()
            assert await after.reconcile(frozenset({old.id, new.id})) == 0
            with Service(old, TCP, 81, "old"):
                assert await asyncio.to_thread(ask, host, "10.202.0.2", 81) == "old 10.202.0.1"
            await after.detach(old.id, None)
            await after.detach(new.id, None)
            old.close()
            new.close()
            async with asyncio.timeout(10):
                while after._ipam.owners():
                    await asyncio.sleep(0.01)
            assert links(host) == 0
            await after.shutdown(remove=False)
            last = network(leases, "10.202.7.0/24")
            await last.start()
            assert (await last.attach(newest.netns, AttachRequest(newest.id))).ips[0].startswith("10.202.7.")
            await last.detach(newest.id, None)
        await free_again(last)
        assert "10.202.0.1" not in host.run("ip", "addr", "show", "ctl0")
        await last.shutdown(remove=True)

    play(host, story)


def test_a_full_range_says_so_and_recovers(host: Namespace) -> None:
    async def story() -> None:
        made = network(subnet="10.202.7.0/29")
        await made.start()
        pods = [Pod() for _ in range(6)]
        for pod in pods[:5]:
            await made.attach(pod.netns, AttachRequest(pod.id))
        with pytest.raises(ResourceExhaustedError, match=r"10\.202\.7\.0/29 \(5 addresses\)"):
            await made.attach(pods[5].netns, AttachRequest(pods[5].id))
        assert links(host) == 5
        # The namespace is still held (by us), so the next attach has the link deleted and takes its address.
        await made.detach(pods[0].id, None)
        assert (await made.attach(pods[5].netns, AttachRequest(pods[5].id))).ips == ("10.202.7.2",)
        for pod in pods:
            await made.detach(pod.id, None)
            pod.close()
        await free_again(made)
        await made.shutdown(remove=True)

    play(host, story)


def test_a_link_whose_namespace_is_held_is_deleted_after_a_while(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        with Pod() as pod:
            given = await made.attach(pod.netns, AttachRequest(pod.id))
            await made.detach(pod.id, given)
            await made.detach(pod.id, given)
            assert given.host_interface in host.run("ip", "link")
            assert made.usage() == {"10.202.7.0/24": (1, 253)}
            await free_again(made)
            assert links(host) == 0
            await made.detach(pod.id, given)
        await made.shutdown(remove=True)

    play(host, story)


def test_a_namespace_that_died_first_frees_its_address_at_detach(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        pod = Pod()
        await made.attach(pod.netns, AttachRequest(pod.id, ports=(PortMapping(Protocol.TCP, 80, 8080),)))
        pod.close()
        async with asyncio.timeout(10):
            while made._links.present:
                await asyncio.sleep(0.01)
        assert links(host) == 0
        assert made.usage() == {"10.202.7.0/24": (1, 253)}
        await made.detach(pod.id, None)
        assert made.usage() == {"10.202.7.0/24": (0, 253)}
        assert elements(host) == 0
        await made.shutdown(remove=True)

    play(host, story)


def test_a_port_conflict_names_the_owner_and_leaves_nothing(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        with Pod() as one, Pod() as two:
            port = PortMapping(Protocol.TCP, 80, 8080)
            await made.attach(one.netns, AttachRequest(one.id, "web", "shop", ports=(port,)))
            request = AttachRequest(two.id, "late", "shop", ports=(PortMapping(Protocol.TCP, 1, 9090), port))
            with pytest.raises(AlreadyExistsError, match=rf"tcp 0\.0\.0\.0:8080 .*shop/web \({one.id[:13]}\)"):
                await made.attach(two.netns, request)
            assert made.usage() == {"10.202.7.0/24": (1, 253)}
            assert (links(host), elements(host)) == (1, 1)
            # another protocol, and a given host address, are no conflict
            free = (
                PortMapping(Protocol.UDP, 80, 8080),
                PortMapping(Protocol.TCP, 80, 8080, "127.0.0.1"),
                PortMapping(Protocol.SCTP, 80, 8080),
            )
            await made.attach(two.netns, AttachRequest(two.id, "late", "shop", ports=free))
            assert elements(host) == 4
            for pod in (one, two):
                await made.detach(pod.id, None)
            assert elements(host) == 0
        await free_again(made)
        await made.shutdown(remove=True)

    play(host, story)


def test_the_observer_is_told_of_times_and_failures(host: Namespace) -> None:
    class Told(NullObserver):
        def __init__(self) -> None:
            self.calls: list[tuple[str, str]] = []

        def network_attach(self, kind: str, seconds: float) -> None:
            assert seconds > 0
            self.calls.append(("attach", kind))

        def network_detach(self, kind: str, seconds: float) -> None:
            assert seconds > 0
            self.calls.append(("detach", kind))

        def network_error(self, plugin: str, code: str) -> None:
            self.calls.append((plugin, code))

    async def story() -> None:
        made, told = network(subnet="10.202.7.0/29"), Told()
        made.observe(told)
        await made.start()
        assert made.addresses() == {("ipv4", "used"): 0, ("ipv4", "free"): 5}
        with Pod() as pod, Pod() as other:
            await made.attach(pod.netns, AttachRequest(pod.id, ports=(PortMapping(Protocol.TCP, 80, 8080),)))
            assert made.addresses() == {("ipv4", "used"): 1, ("ipv4", "free"): 4}
            with pytest.raises(AlreadyExistsError):
                await made.attach(other.netns, AttachRequest(other.id, ports=(PortMapping(Protocol.TCP, 80, 8080),)))
            with pytest.raises(InvalidArgumentError):
                await made.attach(
                    other.netns, AttachRequest(other.id, ports=(PortMapping(Protocol.TCP, 80, 8080, "fd00::1"),))
                )
            await made.detach(pod.id, None)
        await free_again(made)
        assert told.calls == [
            ("attach", "embedded"),
            ("embedded", "AlreadyExists"),
            ("embedded", "InvalidArgument"),
            ("detach", "embedded"),
        ]
        await made.shutdown(remove=True)

    play(host, story)


def test_the_same_pod_twice_is_refused(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        with Pod() as pod:
            await made.attach(pod.netns, AttachRequest(pod.id))
            with pytest.raises(AlreadyExistsError, match="already has network interface"):
                await made.attach(pod.netns, AttachRequest(pod.id))
            await made.detach(pod.id, None)
        await free_again(made)
        await made.shutdown(remove=True)

    play(host, story)


@pytest.mark.parametrize("broken", ["netns", "netlink", "element"])
def test_a_failed_step_is_named_and_taken_back(host: Namespace, broken: str) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        with Pod() as pod, open(os.devnull, encoding="ascii") as file:
            netns = pod.netns
            expected = "create link v"
            if broken == "netns":
                netns = PodNetns(pod.id, "", file.fileno(), netns.netlink_fd)
            elif broken == "netlink":
                netns = PodNetns(pod.id, "", netns.netns_fd, file.fileno())
                expected = "netlink socket"
            else:
                host.run("nft", "add", "element", "inet", "crishim-ctl0", "any4", "{ tcp . 8080 : 192.0.2.9 . 1 }")
                expected = "add elements to nftables set crishim-ctl0 any4"
            with pytest.raises(KernelError, match=expected):
                await made.attach(netns, AttachRequest(pod.id, ports=(PortMapping(Protocol.TCP, 80, 8080),)))
            assert made.usage() == {"10.202.7.0/24": (0, 253)}
            assert (links(host), made.interface_stats()) == (0, {})
        await made.shutdown(remove=True)

    play(host, story)


def test_a_cancelled_attach_leaves_nothing(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        for delay in (0, 1, 2, 3):
            with Pod() as pod:
                request = AttachRequest(pod.id, ports=(PortMapping(Protocol.UDP, 80, 8080),))
                task = asyncio.ensure_future(made.attach(pod.netns, request))
                for _ in range(delay):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert made.usage() == {"10.202.7.0/24": (0, 253)}
                assert (links(host), elements(host)) == (0, 0)
        await made.shutdown(remove=True)

    play(host, story)


def test_a_restarted_daemon_keeps_live_pods_and_removes_the_rest(host: Namespace) -> None:
    async def story() -> None:
        leases = MemoryLeases()
        before = network(leases)
        await before.start()
        with Pod() as live, Pod() as dead, Pod() as half:
            kept = await before.attach(
                live.netns, AttachRequest(live.id, "a", "ns", ports=(PortMapping(Protocol.TCP, 80, 8080),))
            )
            await before.attach(
                dead.netns, AttachRequest(dead.id, "b", "ns", ports=(PortMapping(Protocol.UDP, 80, 8081),))
            )
            leases.take("10.202.7.0/24", "10.202.7.99", half.id)  # leased, and then the daemon was killed
            await before.shutdown(remove=True)
            assert (links(host), elements(host)) == (2, 2)  # pods are left: nothing was removed

            after = network(leases)
            await after.start()
            assert await after.reconcile(frozenset({live.id})) == 4  # a link, an element, two leases
            assert (links(host), elements(host)) == (1, 1)
            assert after.usage() == {"10.202.7.0/24": (1, 253)}
            assert list(after.interface_stats()) == [live.id]
            assert await after.reconcile(frozenset({live.id})) == 0
            with pytest.raises(AlreadyExistsError, match="ns/a"):
                await after.attach(dead.netns, AttachRequest(dead.id, ports=(PortMapping(Protocol.TCP, 80, 8080),)))
            fresh = await after.attach(dead.netns, AttachRequest(dead.id, ports=(PortMapping(Protocol.UDP, 80, 8081),)))
            assert fresh.ips != kept.ips
            for pod in (live, dead):
                await after.detach(pod.id, None)
            await free_again(after)
            assert (links(host), elements(host)) == (0, 0)
            await after.shutdown(remove=True)

    play(host, story)


def test_many_at_once(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        pods = [Pod() for _ in range(30)]
        given = await asyncio.gather(*(made.attach(pod.netns, AttachRequest(pod.id)) for pod in pods))
        assert len({item.ips for item in given}) == len({item.mac for item in given}) == 30
        assert set(made.interface_stats()) == {pod.id for pod in pods}
        for pod in pods:
            pod.close()
        await asyncio.gather(*(made.detach(pod.id, None) for pod in pods))
        await free_again(made)
        assert links(host) == 0
        await made.shutdown(remove=True)

    play(host, story)


def test_what_is_not_ours_is_refused_and_the_network_not_ready(host: Namespace) -> None:
    async def story() -> None:
        host.ip("link add ctl0 type veth peer name other0")
        made = network()
        await made.start()
        assert made.ready()[:2] == (False, "NetworkNotReady")
        assert "link ctl0 exists and is no bridge" in made.ready()[2]
        with Pod() as pod:
            with pytest.raises(FailedPreconditionError, match="choose another name with --bridge"):
                await made.attach(pod.netns, AttachRequest(pod.id))
            host.ip("link del ctl0")
            await made.attach(pod.netns, AttachRequest(pod.id))  # tries again, and it works now
            assert made.ready()[0]
            other = network(bridge="ctl1", subnet="10.202.0.0/16")
            await other.start()
            assert "subnet 10.202.0.0/16 is used by ctl0 (10.202.7.1/24)" in other.ready()[2]
            await other.shutdown(remove=True)
            assert "ctl1" not in host.run("ip", "link")
            await made.detach(pod.id, None)
        await free_again(made)
        await made.shutdown(remove=True)
        assert host.run("nft", "list", "ruleset") == ""

    play(host, story)


def test_a_wrong_port_is_refused_before_anything_is_made(host: Namespace) -> None:
    async def story() -> None:
        made = network()
        await made.start()
        pod_id = new_id()
        ports = (
            PortMapping(Protocol.TCP, 80, 8080),
            PortMapping(Protocol.TCP, 80, 81, "::1"),
            PortMapping(Protocol.UDP, 1, 2, "fd00::1"),
        )
        with pytest.raises(InvalidArgumentError) as caught:
            await made.attach(PodNetns(pod_id, "", -1, -1), AttachRequest(pod_id, ports=ports))
        assert caught.value.field == "config.port_mappings[1].host_ip"
        for part in ("::1 cannot be forwarded", "[2].host_ip: fd00::1 is IPv6"):
            assert part in str(caught.value)
        assert made.usage() == {"10.202.7.0/24": (0, 253)}
        await made.shutdown(remove=True)

    play(host, story)


def test_the_mtu_follows_the_default_route(host: Namespace) -> None:
    async def story() -> None:
        host.ip("link add up0 mtu 1400 type veth peer name up1")
        host.ip("addr add 192.0.2.1/24 dev up0")
        host.ip("link set up0 up")
        host.ip("link set up1 up")
        host.ip("route add default via 192.0.2.2")
        made = network()
        await made.start()
        with Pod() as pod:
            assert (await made.attach(pod.netns, AttachRequest(pod.id))).mtu == 1400
            assert "eth0@" in pod.run("ip", "link")
            assert "mtu 1400" in pod.run("ip", "link", "show", "eth0")
            await made.detach(pod.id, None)
        await free_again(made)
        await made.shutdown(remove=True)

    play(host, story)
