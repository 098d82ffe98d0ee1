"""What is told of a pod's network namespace is what stands in it."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from crishim.errors import KernelError
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.inspect import MOST, Interface, PodRoute, look_inside
from crishim.network.ipam import MemoryLeases
from crishim.network.model import AttachRequest
from crishim.network.settings import NetworkSettings
from tests.integration.network_topology import Namespace, Pod, inside, need_network_namespaces


@pytest.fixture
def host() -> Iterator[Namespace]:
    need_network_namespaces()
    with Namespace() as made:
        yield made


def path(where: Namespace) -> str:
    return f"/proc/{os.getpid()}/fd/{where.fd}"


def test_an_attached_pod(host: Namespace) -> None:
    async def story() -> None:
        settings = NetworkSettings("cti0", ("10.205.7.0/24", "fd00:205:7::/64"), mtu=1400)
        network = EmbeddedNetwork(settings, MemoryLeases())
        await network.start()
        with Pod() as pod:
            given = await network.attach(pod.netns, AttachRequest(pod.id))
            seen = await asyncio.to_thread(look_inside, path(pod))
            await network.detach(pod.id, None)
        await network.shutdown(remove=True)
        lo, eth0 = seen.interfaces
        assert (lo.name, lo.up) == ("lo", True)
        assert set(lo.addresses) == {"127.0.0.1/8", "::1/128"}
        assert (eth0.name, eth0.mac, eth0.mtu, eth0.up) == ("eth0", given.mac, 1400, True)
        assert {"10.205.7.2/24", "fd00:205:7::2/64"} <= set(eth0.addresses)
        assert {
            PodRoute("default", "10.205.7.1", "eth0"),
            PodRoute("10.205.7.0/24", "", "eth0"),
            PodRoute("default", "fd00:205:7::1", "eth0"),
            PodRoute("fd00:205:7::/64", "", "eth0"),
        } <= set(seen.routes)

    with inside(host.fd):
        asyncio.run(story())


def test_a_fresh_namespace_and_one_with_far_too_much(host: Namespace) -> None:
    assert look_inside(path(host)).interfaces[0] == Interface("lo", "00:00:00:00:00:00", 65536, False, ())
    host.ip("link set lo up")
    host.run("sh", "-c", "for a in 1 2 3; do for b in $(seq 100); do ip addr add 10.9.$a.$b/32 dev lo; done; done")
    (lo,) = look_inside(path(host)).interfaces
    assert len(lo.addresses) == MOST


def test_what_is_no_namespace_is_an_error_and_nobody_moves(host: Namespace) -> None:
    before, threads = os.readlink("/proc/thread-self/ns/net"), threading.active_count()
    with pytest.raises(KernelError, match=r"enter network namespace /nowhere: No such file"):
        look_inside("/nowhere")
    with pytest.raises(KernelError, match=r"enter network namespace /proc/self/ns/uts: Invalid argument"):
        look_inside("/proc/self/ns/uts")
    look_inside(path(host))
    assert (os.readlink("/proc/thread-self/ns/net"), threading.active_count()) == (before, threads)
