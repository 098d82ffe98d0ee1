"""The kernel's view of what our own netlink code made, read back by `nft` and pyroute2 as second opinions."""

import asyncio
import errno
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from crishim.errors import KernelError
from crishim.linux.netlink.connection import NETFILTER, Connection
from crishim.linux.nft import expressions, messages, transaction
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.network.model import AttachRequest
from crishim.network.plan import link_name, link_prefix
from crishim.network.settings import NetworkSettings
from crishim.request import PortMapping, Protocol
from tests.integration.network_topology import Namespace, Pod, inside, need_network_namespaces
from tests.support.abilities import need_program

RULES = Path(__file__).with_name("network_tables.nft").read_text(encoding="utf-8")
PORTS = (
    PortMapping(Protocol.TCP, 80, 8080),
    PortMapping(Protocol.SCTP, 90, 9090),
    PortMapping(Protocol.UDP, 53, 5353, "127.0.0.1"),
    PortMapping(Protocol.TCP, 81, 8081, "2001:db8::1"),
)


@pytest.fixture
def host() -> Iterator[Namespace]:
    need_network_namespaces()
    need_program("nft", "nftables")
    with Namespace() as made:
        yield made


def _flat(text: str) -> list[str]:
    """One line a rule, the two elements of a map sorted: a hash's order says nothing."""
    joined = re.sub(r",\s*\n\s*", ", ", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip()]
    return [" ".join(sorted(re.split(r"[ ,]+", line))) if line.startswith("elements") else line for line in lines]


def test_nft_shows_the_table_as_designed(host: Namespace) -> None:
    async def story() -> None:
        settings = NetworkSettings("ctf0", ("10.203.7.0/24", "fd00:203:7::/64"))
        network = EmbeddedNetwork(settings, MemoryLeases())
        await network.start()
        with Pod() as pod:
            await network.attach(pod.netns, AttachRequest(pod.id, "web", "ns", ports=PORTS))
            shown = host.run("nft", "list", "ruleset").replace(pod.id, "POD")
            shown = shown.replace(link_name("ctf0", pod.id), "LINK").replace(link_prefix("ctf0"), "PREFIX")
            assert _flat(shown) == _flat(RULES)
            # nft can read its own words back: they are a ruleset, not only a picture
            _read_back(host, host.run("nft", "list", "table", "inet", "crishim-ctf0"))
            assert json.loads(host.run("nft", "-j", "list", "ruleset"))["nftables"]
            await network.detach(pod.id, None)
            async with asyncio.timeout(30):  # what the pod might send goes after its link, in the background
                while "elements" in host.run("nft", "list", "ruleset"):
                    await asyncio.sleep(0.01)
        await network.shutdown(remove=True)

    with inside(host.fd):
        asyncio.run(story())


def _read_back(host: Namespace, shown: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(shown)
        file.flush()
        host.run("nft", "-c", "-f", file.name)


def test_pyroute2_sees_the_links_addresses_and_routes(host: Namespace) -> None:
    async def story() -> dict[str, Any]:
        settings = NetworkSettings("ctf0", ("10.203.7.0/24", "fd00:203:7::/64"), mtu=1400)
        network = EmbeddedNetwork(settings, MemoryLeases())
        await network.start()
        with Pod() as pod:
            given = await network.attach(pod.netns, AttachRequest(pod.id))
            found = await asyncio.to_thread(_look, host, pod, given.host_interface)
            await network.detach(pod.id, None)
        await network.shutdown(remove=True)
        assert found["mac"] == given.mac
        return found

    with inside(host.fd):
        found = asyncio.run(story())
    assert found == {
        "kind": "veth",
        "mtu": (1400, 1400),
        "state": ("up", "up"),
        "mac": "0a:58:0a:cb:07:02",
        "port of": "ctf0",
        "hairpin": 1,
        "loopback": "up",
        "addresses": [("10.203.7.2", 24), ("fd00:203:7::2", 64)],
        "gateways": ["10.203.7.1", "fd00:203:7::1"],
    }


def _look(host: Namespace, pod: Pod, name: str) -> dict[str, Any]:
    with inside(host.fd), IPRoute() as ip:
        (link,) = ip.link("get", ifname=name)
        (bridge,) = ip.get_links(link.get("master"))
        slave = link.get(("linkinfo", "slave_data"))
        outside = (link.get("mtu"), link.get("state"), link.get(("linkinfo", "kind")), bridge.get("ifname"))
    with inside(pod.fd), IPRoute() as ip:
        (eth0,) = ip.link("get", ifname="eth0")
        (lo,) = ip.link("get", ifname="lo")
        addresses = [(a.get("address"), a["prefixlen"]) for a in ip.get_addr(index=eth0["index"])]
        gateways = [route.get("gateway") for family in (2, 10) for route in ip.get_default_routes(family)]
    return {
        "kind": outside[2],
        "mtu": (outside[0], eth0.get("mtu")),
        "state": (outside[1], eth0.get("state")),
        "mac": eth0.get("address"),
        "port of": outside[3],
        "hairpin": slave.get("mode"),
        "loopback": lo.get("state"),
        "addresses": sorted(item for item in addresses if not item[0].startswith("fe80")),
        "gateways": gateways,
    }


def test_a_transaction_is_whole_or_nothing(host: Namespace) -> None:
    with inside(host.fd), Connection(NETFILTER) as connection:
        good = [
            messages.add_table("ctf"),
            messages.add_chain("ctf", "c", kind="filter", hook=messages.PREROUTING, priority=0),
        ]
        bad = messages.add_rule("ctf", "c", [expressions.lookup("absent", 0, 0)])
        with pytest.raises(KernelError, match="add a rule to nftables chain ctf c") as caught:
            transaction.commit(connection, [*good, bad, messages.add_table("ctg")])
        assert caught.value.errno == errno.ENOENT
        assert host.run("nft", "list", "tables") == ""
        transaction.commit(connection, good)
        with pytest.raises(KernelError, match=r"delete nftables table ctg: No such file or directory \(ENOENT\)"):
            transaction.commit(connection, [messages.delete_table("ctf"), messages.delete_table("ctg")])
        assert host.run("nft", "list", "tables") == "table inet ctf\n"
        transaction.commit(connection, [])
        transaction.commit(connection, [messages.delete_table("ctf")])
        assert host.run("nft", "list", "tables") == ""


def test_a_thousand_ports_of_one_pod(host: Namespace) -> None:
    async def story() -> None:
        network = EmbeddedNetwork(NetworkSettings("ctf0", ("10.203.7.0/24",)), MemoryLeases())
        await network.start()
        with Pod() as pod:
            ports = tuple(PortMapping(Protocol.TCP, number, number) for number in range(20000, 21000))
            await network.attach(pod.netns, AttachRequest(pod.id, ports=ports))
            assert host.run("nft", "list", "ruleset").count(pod.id) == 1000
            await network.detach(pod.id, None)
            assert host.run("nft", "list", "ruleset").count(pod.id) == 0
        await network.shutdown(remove=True)

    with inside(host.fd):
        asyncio.run(story())
