"""Real traffic between two real daemons' pods, their host, and an outside that knows no pod subnet; dual stack.

The servers run in the pods' own pinned namespaces; what answers tells the address that it sees.
"""

import asyncio
import errno
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.integration.network_topology import Namespace, Service, World, ask, need_network_namespaces
from tests.support.abilities import need_containers, need_program
from tests.support.configs import Config, pod_config
from tests.support.cri import Cri, refused
from tests.support.instance import Instance
from tests.support.walled import Walled

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6 = socket.AF_INET, socket.AF_INET6
FIRST = ("10.208.1.0/24", "fd00:208:1::/64")
SECOND = ("10.208.2.0/24", "fd00:208:2::/64")
KINDS = ((TCP, V4), (TCP, V6), (UDP, V4), (UDP, V6))


@dataclass
class Pod:
    """A pod of a daemon: its namespace, opened by its pin, and its addresses, IPv4 first."""

    id: str
    name: str
    inside: Namespace
    ips: tuple[str, str]
    services: list[Service] = field(default_factory=list)

    def close(self) -> None:
        for service in self.services:
            service.__exit__()
        self.inside.close()


class Lab:
    """A world, and the daemons and pods on its host."""

    def __init__(self) -> None:
        self.world = World()
        self.daemons: list[Walled] = []
        self.pods: list[Pod] = []

    def daemon(self, subnets: tuple[str, ...], config: str = "") -> Walled:
        made = Walled(self.world.host, subnets, config)
        self.daemons.append(made)
        made.start()
        return made

    def pod(self, daemon: Walled, name: str, *ports: Config, port: int = 80) -> Pod:
        """Run a pod that serves TCP and UDP of both families on `port`."""
        config = pod_config(name, log_directory=daemon.logs, port_mappings=list(ports))
        identity = daemon.run_pod(config)
        status = daemon.json("inspectp", identity)["status"]["network"]
        ips = (status["ip"], *(item["ip"] for item in status.get("additionalIps", [])))
        pod = Pod(identity, name, Namespace(f"{daemon.state}/ns/{identity}/net"), ips)
        self.pods.append(pod)
        for kind, family in KINDS:
            pod.services.append(Service(pod.inside, kind, port, name, family).__enter__())
        return pod

    def remove(self, daemon: Walled, pod: Pod) -> None:
        self.pods.remove(pod)
        pod.close()
        daemon.crictl("rmp", "-f", pod.id)

    def close(self) -> None:
        for pod in self.pods:
            pod.close()
        for daemon in self.daemons:
            daemon.close()
        assert self.world.host.run("nft", "list", "ruleset") == ""
        self.world.close()


@pytest.fixture
def lab(test_leaks: None) -> Iterator[Lab]:
    need_containers()
    need_network_namespaces()
    need_program("nft", "nftables")
    made = Lab()
    yield made
    made.close()


def hosts_of(instance: Instance, pod: str) -> list[str]:
    """Return the lines of a pod's /etc/hosts, which lies on a mount that only its keeper holds."""
    keeper = instance.json("inspectp", pod)["info"]["pid"]
    held = [f"/proc/{keeper}/fd/{fd}/files/hosts" for fd in os.listdir(f"/proc/{keeper}/fd")]
    for path in (*held, f"{instance.state}/pods/{pod}/shm/files/hosts"):
        if os.path.exists(path):
            return Path(path).read_text(encoding="utf-8").splitlines()
    raise AssertionError("the pod has no hosts file")


def mapping(host_port: int, protocol: str = "TCP", host_ip: str = "") -> Config:
    number = api.Protocol.Value(protocol)  # crictl reads no names
    return {"protocol": number, "container_port": 80, "host_port": host_port, "host_ip": host_ip}


def closed(where: Namespace, address: str, port: int) -> bool:
    try:
        ask(where, address, port)
    except OSError as error:
        return isinstance(error, TimeoutError) or error.errno == errno.ECONNREFUSED
    return False


def test_two_instances_on_one_host(lab: Lab) -> None:
    one, two = lab.daemon(FIRST), lab.daemon(SECOND)
    web = lab.pod(one, "web", mapping(8080), mapping(8080, "UDP"))
    peer = lab.pod(one, "peer")
    far = lab.pod(two, "far", mapping(8081), mapping(8081, "UDP"))
    assert [line.split()[0] for line in hosts_of(one, web.id)][-2:] == list(web.ips)
    world = lab.world
    out = [Service(world.outside, kind, 99, "out", family).__enter__() for kind, family in KINDS]
    try:
        for version in (0, 1):
            ours, theirs = world.host_ips[version], world.outside_ips[version]
            for kind in (TCP, UDP):
                # pod to pod of one instance: each under its own address; to the other's: through the host
                assert ask(peer.inside, web.ips[version], 80, kind) == f"web {peer.ips[version]}"
                assert ask(far.inside, web.ips[version], 80, kind).startswith("web ")
                assert ask(web.inside, far.ips[version], 80, kind).startswith("far ")
                # pod to outside: the host's address is what is seen there
                assert ask(web.inside, theirs, 99, kind) == f"out {ours}"
                assert ask(far.inside, theirs, 99, kind) == f"out {ours}"
                # outside to published ports: the pod sees the caller
                assert ask(world.outside, ours, 8080, kind) == f"web {theirs}"
                assert ask(world.outside, ours, 8081, kind) == f"far {theirs}"
                # host, neighbour, the pod itself (hairpin), the other instance's pod: by the host's address
                for where in (world.host, peer.inside, web.inside, far.inside):
                    assert ask(where, ours, 8080, kind).startswith("web ")
                    assert ask(where, ours, 8081, kind).startswith("far ")
            # what is not published is not there
            assert closed(world.outside, ours, 80)
        for kind in (TCP, UDP):
            assert ask(world.host, "127.0.0.1", 8080, kind) == "web 10.208.1.1"
            assert ask(world.host, "127.0.0.1", 8081, kind) == "far 10.208.2.1"
    finally:
        for service in out:
            service.__exit__()
    # a daemon that ends does not take the other's traffic along
    one.restart()
    for version in (0, 1):
        assert ask(world.outside, world.host_ips[version], 8080).startswith("web ")
        assert ask(world.outside, world.host_ips[version], 8081).startswith("far ")


def test_host_addresses_of_both_families(lab: Lab) -> None:
    one = lab.daemon(FIRST)
    given = lab.pod(one, "given", mapping(8080, host_ip="192.0.2.1"), mapping(8080, host_ip="2001:db8::1"))
    local = lab.pod(one, "local", mapping(8080, host_ip="127.0.0.1"))
    four = lab.pod(one, "four", mapping(8081, host_ip="0.0.0.0"))
    six = lab.pod(one, "six", mapping(8082, host_ip="::"))
    world = lab.world
    assert {pod.name for pod in (given, local, four, six)} == {"given", "local", "four", "six"}
    assert ask(world.outside, "192.0.2.1", 8080) == "given 192.0.2.2"
    assert ask(world.outside, "2001:db8::1", 8080) == "given 2001:db8::2"
    assert ask(world.host, "127.0.0.1", 8080).startswith("local ")
    assert ask(world.outside, "192.0.2.1", 8081).startswith("four ")
    assert closed(world.outside, "2001:db8::1", 8081)
    assert ask(world.outside, "2001:db8::1", 8082).startswith("six ")
    assert closed(world.outside, "192.0.2.1", 8082)
    answer = one.crictl(
        "runp", one.config_file(pod_config("x", port_mappings=[mapping(1, host_ip="::1")])), check=False
    )
    assert "config.port_mappings[0].host_ip: ::1 cannot be forwarded" in answer.stderr


def test_a_taken_port_names_its_owner_and_leaves_nothing(lab: Lab) -> None:
    one = lab.daemon(FIRST)
    web = lab.pod(one, "web", mapping(8080))
    before = (one.leases(), one.namespaces(), one.links())
    answer = one.crictl("runp", one.config_file(pod_config("late", port_mappings=[mapping(8080)])), check=False)
    assert f"host port tcp 0.0.0.0:8080 belongs to pod test/web ({web.id[:13]})" in answer.stderr
    assert (one.leases(), one.namespaces(), one.links()) == before
    assert one.crictl("pods", "-q", "--no-trunc").stdout.split() == [web.id]


@pytest.mark.parametrize("version", [0, 1])
def test_udp_from_a_fixed_port_follows_the_pod_that_took_over(lab: Lab, version: int) -> None:
    one = lab.daemon(FIRST)
    address = lab.world.host_ips[version]
    for number in range(3):
        pod = lab.pod(one, f"dns{number}", mapping(9999, "UDP"))
        for where in (lab.world.outside, lab.world.host):
            assert ask(where, address, 9999, UDP, source=4000).startswith(f"dns{number} ")
        lab.remove(one, pod)


def test_kubelets_pod_cidr(lab: Lab) -> None:
    config = "[network]\nmtu = 1400\n"
    one = lab.daemon((), config)  # no --subnet: the default, until kubelet tells

    async def tell(daemon: Walled, cidr: str, code: grpc.StatusCode | None = None) -> str:
        network = api.NetworkConfig(pod_cidr=cidr)
        request = api.UpdateRuntimeConfigRequest(runtime_config=api.RuntimeConfig(network_config=network))
        async with Cri(daemon.socket) as cri:
            call = cri.runtime.UpdateRuntimeConfig(request)
            if code is not None:
                return await refused(call, code)
            await call
            return ""

    old = lab.pod(one, "old", mapping(8080))
    assert old.ips[0].startswith("10.119.")
    asyncio.run(tell(one, ""))
    message = asyncio.run(tell(one, "10.208.1.7/24", grpc.StatusCode.INVALID_ARGUMENT))
    assert message.startswith("runtime_config.network_config.pod_cidr[0]: '10.208.1.7/24'")
    message = asyncio.run(tell(one, "192.0.2.0/24", grpc.StatusCode.FAILED_PRECONDITION))
    assert "is used by up0" in message
    asyncio.run(tell(one, ",".join(FIRST)))
    asyncio.run(tell(one, ",".join(FIRST)))
    new = lab.pod(one, "new", mapping(8081))
    assert new.ips == ("10.208.1.2", "fd00:208:1::2")
    # the old pod goes on, is reached, and reaches the new one and the outside
    assert ask(new.inside, old.ips[0], 80) == f"old {new.ips[0]}"
    assert ask(old.inside, new.ips[0], 80) == f"new {old.ips[0]}"
    assert ask(lab.world.outside, "192.0.2.1", 8080).startswith("old ")
    with Service(lab.world.outside, TCP, 99, "out"):
        assert ask(old.inside, "192.0.2.2", 99) == "out 192.0.2.1"
    # and after a restart without a word from kubelet
    one.restart()
    later = lab.pod(one, "later")
    assert later.ips == ("10.208.1.3", "fd00:208:1::3")
    assert ask(later.inside, old.ips[0], 80).startswith("old ")
    inside: Any = json.loads(one.crictl("inspectp", new.id).stdout)["info"]["network"]
    assert inside["interfaces"][1]["mtu"] == 1400
    assert [(port["hostPort"], port["protocol"]) for port in inside["ports"]] == [(8081, "tcp")]
    # where subnets are configured, kubelet may only repeat them
    two = lab.daemon(SECOND)
    asyncio.run(tell(two, ",".join(SECOND)))
    message = asyncio.run(tell(two, "10.208.3.0/24", grpc.StatusCode.FAILED_PRECONDITION))
    assert "10.208.3.0/24 differs from the configured network.subnets 10.208.2.0/24, fd00:208:2::/64" in message
