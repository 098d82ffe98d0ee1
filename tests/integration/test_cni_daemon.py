"""A real daemon whose pods are on CNI networks: the CNI project's plugins, and one that fails and hangs when told."""

import asyncio
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.integration.network_topology import Namespace, Service, ask, need_network_namespaces
from tests.support.abilities import need_containers
from tests.support.cni import Stub, bridge_list, need_plugins, ptp_list, write_list
from tests.support.configs import pod_config
from tests.support.cri import Cri, attempt
from tests.support.waiting import wait_for
from tests.support.walled import Walled

SUBNETS = ("10.211.7.0/28",)
CNI_SUBNET = "10.212.7.0/28"
PORT = {"protocol": 0, "container_port": 80, "host_port": 8080}


class Daemon(Walled):
    """An instance on a host of its own, with a stub and the plugins."""

    def __init__(self, host: Namespace) -> None:
        super().__init__(host, SUBNETS, "# replaced")
        self.wall = host
        self.stub = Stub(f"{self.base}/stubs")
        self.ipam = f"{self.base}/ipam"
        text = f"[network]\ncni_bin_dirs = ['{self.stub.directory}', '{need_plugins()}']\ncni_seconds = 2\n"
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    def use_bridge(self, version: str = "1.1.0") -> str:
        return write_list(self.networks, bridge_list("cni0", CNI_SUBNET, self.ipam, version))

    def use_stub(self, version: str = "1.1.0", *capabilities: str) -> str:
        return write_list(self.networks, self.stub.network(version, *capabilities))

    def pod(self, name: str, **more: Any) -> str:
        return self.run_pod(pod_config(name, log_directory=self.logs, **more))

    def refused(self, name: str, **more: Any) -> str:
        config = self.config_file(pod_config(name, log_directory=self.logs, **more))
        done = self.crictl("runp", config, check=False)
        assert done.returncode != 0
        return done.stderr

    def kind(self, pod: str) -> str:
        return str(self.json("inspectp", pod)["info"]["network"]["kind"])

    def address(self, pod: str) -> str:
        return str(self.json("inspectp", pod)["status"]["network"]["ip"])

    def condition(self) -> tuple[bool, str]:
        found = {item["type"]: item for item in self.json("info")["status"]["conditions"]}["NetworkReady"]
        return found["status"], found.get("message", "")

    def pods(self) -> set[str]:
        return set(self.crictl("pods", "-q", "--no-trunc").stdout.split())

    def records(self) -> set[str]:
        with sqlite3.connect(f"file:{self.root}/state.db?mode=ro", uri=True) as database:
            return {pod for (pod,) in database.execute("SELECT key FROM attachments")}

    def given(self) -> set[str]:
        """Return the addresses that host-local has given away."""
        found = os.listdir(f"{self.ipam}/tests") if os.path.isdir(f"{self.ipam}/tests") else []
        return {name for name in found if name[0].isdigit()}

    def rules(self) -> list[str]:
        """Return the host's rules that publish ports of pods (portmap's chains of one pod are CNI-DN-…)."""
        lines = self.host.run("iptables", "-t", "nat", "-S").splitlines()
        return [line for line in lines if "CNI-DN-" in line]

    def left(self) -> dict[str, Any]:
        found = {"links": self.links(), "addresses": self.given(), "rules": self.rules(), "records": self.records()}
        return {kind: what for kind, what in found.items() if what}


@pytest.fixture
def host() -> Iterator[Namespace]:
    need_containers()
    need_network_namespaces()
    with Namespace() as made:
        made.ip("link set lo up")
        yield made


@pytest.fixture
def daemon(host: Namespace, test_leaks: None) -> Iterator[Daemon]:
    made = Daemon(host)
    yield made
    made.point = ""
    made.close()


def test_an_interface_that_a_plugin_makes_takes_no_router_either(daemon: Daemon) -> None:
    daemon.start()
    daemon.use_stub()
    pod = daemon.pod("web")
    with Namespace(f"{daemon.state}/ns/{pod}/net") as within:
        within.ip("link add eth0 type veth peer name far0")  # as a plugin would
        keys = "ipv6/conf/eth0/accept_ra", "ipv6/conf/eth0/accept_redirects", "ipv4/ip_unprivileged_port_start"
        assert within.run("sh", "-c", f"cd /proc/sys/net; cat {' '.join(keys)}").split() == ["0", "0", "0"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_pods_on_a_bridge_through_their_life(daemon: Daemon, version: str) -> None:
    daemon.use_bridge(version)
    daemon.start()
    assert daemon.condition() == (True, "")
    server, client = daemon.pod("server", port_mappings=[PORT]), daemon.pod("client")
    address = daemon.address(server)
    assert {address, daemon.address(client)} == daemon.given()
    inside = daemon.json("inspectp", server)["info"]["network"]
    assert inside["kind"] == "cni"
    assert {link["name"]: link["up"] for link in inside["interfaces"]} == {"lo": True, "eth0": True}
    with (
        Namespace(f"{daemon.state}/ns/{server}/net") as there,
        Namespace(f"{daemon.state}/ns/{client}/net") as here,
        Service(there, socket.SOCK_STREAM, 80, "web"),
    ):
        assert ask(here, address, 80) == f"web {daemon.address(client)}"
        assert ask(there, "127.0.0.1", 80) == "web 127.0.0.1"
        assert ask(daemon.wall, "127.0.0.1", 8080).startswith("web ")
        assert ask(here, "10.212.7.1", 8080).startswith("web ")
    daemon.restart()
    assert daemon.records() == {server, client}
    daemon.crictl("stopp", server)
    assert (daemon.records(), daemon.rules()) == ({client}, [])
    daemon.crictl("rmp", "-a", "-f")
    wait_for(lambda: not daemon.left(), 20)
    # the embedded network was never needed
    assert daemon.bridge not in daemon.host.run("ip", "link")


def test_pods_without_a_bridge(daemon: Daemon) -> None:
    write_list(daemon.networks, ptp_list(CNI_SUBNET, daemon.ipam))
    daemon.start()
    server, client = daemon.pod("server", port_mappings=[PORT]), daemon.pod("client")
    with (
        Namespace(f"{daemon.state}/ns/{server}/net") as there,
        Namespace(f"{daemon.state}/ns/{client}/net") as here,
        Service(there, socket.SOCK_STREAM, 80, "web"),
    ):
        assert ask(here, daemon.address(server), 80) == f"web {daemon.address(client)}"
        assert ask(daemon.wall, "127.0.0.1", 8080).startswith("web ")
    daemon.crictl("rmp", "-a", "-f")
    wait_for(lambda: not daemon.left(), 20)


def test_traffic_is_counted(daemon: Daemon) -> None:
    daemon.use_bridge()
    daemon.start()
    server, client = daemon.pod("server"), daemon.pod("client")
    with (
        Namespace(f"{daemon.state}/ns/{server}/net") as there,
        Namespace(f"{daemon.state}/ns/{client}/net") as here,
        Service(there, socket.SOCK_STREAM, 80, "web"),
    ):
        ask(here, daemon.address(server), 80)

    async def received() -> tuple[str, int]:
        async with Cri(daemon.socket) as cri:
            usage = (await cri.pod_stats(server)).linux.network.default_interface
            return usage.name, usage.rx_bytes.value

    name, size = asyncio.run(received())
    assert name == "eth0"
    assert size > 0


def test_a_pod_keeps_the_network_that_it_was_attached_to(daemon: Daemon) -> None:
    daemon.start()
    old = daemon.pod("old", port_mappings=[PORT])
    path = daemon.use_bridge()
    new = daemon.pod("new")
    assert (daemon.kind(old), daemon.kind(new)) == ("embedded", "cni")
    daemon.restart()
    os.unlink(path)
    last = daemon.pod("last")
    assert daemon.kind(last) == "embedded"
    assert daemon.condition() == (True, "")
    assert (daemon.records(), daemon.leases()) == ({new}, {old, last})
    daemon.crictl("rmp", "-f", old, new)
    wait_for(lambda: daemon.leases() == {last} and not daemon.given(), 20)


def test_a_namespace_that_is_gone(daemon: Daemon) -> None:
    daemon.use_stub()
    daemon.start()
    pod = daemon.pod("web")
    pin = f"{daemon.state}/ns/{pod}/net"
    assert [f"netns={pin}" in call for call in daemon.stub.calls("ADD")] == [True]
    daemon.host.run("umount", pin)
    daemon.crictl("rmp", "-f", pod)
    assert ["netns= " in call for call in daemon.stub.calls("DEL")] == [True]
    assert daemon.stub.given("DEL")["prevResult"]["ips"] == [{"address": "192.0.2.77/24"}]


def test_what_plugins_are_told(daemon: Daemon) -> None:
    daemon.use_stub("1.0.0", "portMappings", "bandwidth", "dns", "cgroupPath", "mac", "ips", "ipRanges")
    daemon.start()
    notes = {"kubernetes.io/ingress-bandwidth": "10M", "cni.crishim/mac": "0a:58:0a:00:00:02"}
    notes |= {"cni.crishim/ips": "192.0.2.77/24"}
    dns = {"servers": ["192.0.2.53"], "searches": ["a.test"], "options": ["ndots:2"]}
    config = pod_config("web", log_directory=daemon.logs, annotations=notes, dns_config=dns, port_mappings=[PORT])
    pod = daemon.run_pod(config)
    given = daemon.stub.given("ADD")["runtimeConfig"]
    assert given["portMappings"] == [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    assert given["bandwidth"] == {"ingressRate": 10_000_000, "ingressBurst": 0xFFFF_FFFF}
    assert (given["dns"], given["mac"], given["ips"]) == (dns, "0a:58:0a:00:00:02", ["192.0.2.77/24"])
    pairs = daemon.stub.calls("ADD")[0].partition("args=")[2].split(";")
    assert {f"K8S_POD_INFRA_CONTAINER_ID={pod}", "K8S_POD_NAME=web", "IgnoreUnknown=1"} <= set(pairs)
    assert "K8S_POD_NAMESPACE=test" in pairs
    assert f"K8S_POD_UID={config['metadata']['uid']}" in pairs
    wrong = daemon.refused("wrong", annotations={"kubernetes.io/egress-bandwidth": "much"})
    assert "config.annotations[kubernetes.io/egress-bandwidth]: must be a quantity like '10M'" in wrong
    assert daemon.records() == {pod}


def test_an_add_that_fails_leaves_nothing(daemon: Daemon) -> None:
    document = bridge_list("cni0", CNI_SUBNET, daemon.ipam)
    document["plugins"].append({"type": "stub"})
    write_list(daemon.networks, document)
    daemon.stub.told("fail", "ADD")
    daemon.start()
    message = daemon.refused("web", port_mappings=[PORT])
    for words in ("stub", "107", "no luck", "told so"):
        assert words in message
    assert daemon.pods() == set()
    wait_for(lambda: not daemon.left(), 20)


def test_a_plugin_that_hangs_is_ended(daemon: Daemon) -> None:
    daemon.use_stub()
    daemon.stub.told("hang", "ADD")
    daemon.start()
    message = daemon.refused("web")
    assert "stub" in message
    assert daemon.pods() == daemon.records() == set()
    assert len(daemon.stub.calls("DEL")) >= 1


def test_a_del_that_fails_is_tried_until_it_works(daemon: Daemon) -> None:
    daemon.use_stub()
    daemon.start()
    pod = daemon.pod("web")
    daemon.stub.told("fail", "DEL")
    done = daemon.crictl("stopp", pod, check=False)
    assert done.returncode != 0
    assert "no luck" in done.stderr
    assert daemon.records() == {pod}
    daemon.restart()
    assert daemon.records() == {pod}
    daemon.crictl("stopp", pod, check=False)
    daemon.stub.told("fail", "DEL", on=False)
    wait_for(lambda: daemon.records() == set(), 20)
    daemon.crictl("rmp", pod)


UNFIT = {
    "absent": ("no such program in", "rm second"),
    "not executable": ("is no program that can be run", "chmod 644 second"),
    "a directory": ("is no program that can be run", "rm second; mkdir second"),
    "a link to nothing": ("is no program that can be run", "ln -sf /no/such second"),
}


@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
@pytest.mark.parametrize("kind", UNFIT)
def test_a_program_that_is_not_there_holds_no_pod(daemon: Daemon, kind: str, version: str) -> None:
    words, command = UNFIT[kind]
    write_list(daemon.networks, second_of_two(daemon, version))
    daemon.start()
    assert daemon.condition() == (True, "")
    daemon.host.run("sh", "-ec", f"cd {daemon.stub.directory}; {command}")
    ready, reason = daemon.condition()  # at once, whatever STATUS said before
    assert not ready
    assert words in reason
    assert words in daemon.refused("web")
    # nothing was begun, so nothing is owed
    assert daemon.stub.calls("ADD") == daemon.stub.calls("DEL") == []
    assert daemon.pods() == daemon.records() == set()
    daemon.host.run("rm", "-rf", f"{daemon.stub.directory}/second")
    shutil.copy2(f"{daemon.stub.directory}/stub", f"{daemon.stub.directory}/second")
    assert daemon.condition() == (True, "")
    daemon.crictl("rmp", "-f", daemon.pod("later"))


def second_of_two(daemon: Daemon, version: str = "1.1.0") -> dict[str, Any]:
    """Return a conflist of the stub and of a copy of it that is called `second`."""
    shutil.copy2(f"{daemon.stub.directory}/stub", f"{daemon.stub.directory}/second")
    document = daemon.stub.network(version)
    document["plugins"].append({"type": "second"})
    return document


def test_a_program_that_vanishes_in_the_middle_is_owed_what_was_begun(daemon: Daemon) -> None:
    daemon.start()
    write_list(daemon.networks, second_of_two(daemon))
    script = f"{daemon.stub.directory}/stub"
    with open(script, encoding="utf-8") as file:
        text = file.read()
    with open(script, "w", encoding="utf-8") as file:  # its ADD takes the next plugin away
        file.write(text.replace("    ADD) ", f"    ADD) rm {daemon.stub.directory}/second; "))
    assert "no such program in" in daemon.refused("web")
    assert (len(daemon.stub.calls("ADD")), len(daemon.stub.calls("DEL"))) == (1, 1)
    assert daemon.pods() == daemon.records() == set()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "n", "plugins": []}', '{"cniVersion": "9", "name": "n"}'])
def test_a_configuration_that_is_wrong_holds_no_pod(daemon: Daemon, text: str) -> None:
    os.makedirs(daemon.networks, exist_ok=True)
    with open(f"{daemon.networks}/10-tests.conflist", "w", encoding="utf-8") as file:
        file.write(text)
    daemon.start()
    assert not daemon.condition()[0]
    assert "10-tests.conflist" in daemon.refused("web")
    assert daemon.pods() == daemon.records() == set()
    shutil.rmtree(
        daemon.networks
    )  # with the whole directory gone, pods get the embedded network, from the first call on
    assert daemon.condition() == (True, "")
    daemon.crictl("rmp", "-f", daemon.pod("later"))


def test_readiness_after_a_change_is_not_of_before_it(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.condition() == (True, "")
    daemon.use_stub()
    assert daemon.condition() == (True, "")  # was asked within the call
    assert len(daemon.stub.calls("STATUS")) == 1
    daemon.stub.told("fail", "STATUS")
    document = daemon.stub.network()
    write_list(daemon.networks, {**document, "name": "other"})
    ready, reason = daemon.condition()
    assert not ready
    assert "no luck" in reason
    # one that never answers holds nobody up
    daemon.stub.told("hang", "STATUS")
    write_list(daemon.networks, {**document, "name": "third"})
    assert "have not answered yet" in daemon.condition()[1]


def test_readiness_is_the_plugins_own(daemon: Daemon) -> None:
    daemon.use_stub()
    daemon.stub.told("fail", "STATUS")
    daemon.start()
    ready, reason = daemon.condition()
    assert not ready
    assert "no luck" in reason
    daemon.stub.told("fail", "STATUS", on=False)
    wait_for(lambda: daemon.condition() == (True, ""), 20)
    with open(f"{daemon.networks}/10-tests.conflist", "w", encoding="utf-8") as file:
        file.write('{"cniVersion": "1.1.0", "name"')
    wait_for(lambda: not daemon.condition()[0], 20)
    assert "10-tests.conflist" in daemon.condition()[1]
    assert "10-tests.conflist" in daemon.refused("web")
    daemon.use_stub("1.0.0")
    assert daemon.condition() == (True, "")


def test_garbage_is_collected_at_the_start(daemon: Daemon) -> None:
    daemon.use_stub()
    daemon.start()
    pod = daemon.pod("web")
    daemon.restart()
    assert len(daemon.stub.calls("GC")) == 2
    assert daemon.stub.given("GC")["cni.dev/valid-attachments"] == [{"containerID": pod, "ifname": "eth0"}]


@pytest.mark.parametrize(
    "point",
    [
        "before record the attachment",
        "after record the attachment",
        "before commit the result",
        "after commit the result",
    ],
)
def test_killed_in_attach(daemon: Daemon, point: str) -> None:
    daemon.use_bridge()
    daemon.point = point
    daemon.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(_run(daemon))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    _after(daemon)
    assert daemon.pods() == set()
    wait_for(lambda: not daemon.left(), 20)


@pytest.mark.parametrize("point", ["before forget the attachment", "after forget the attachment"])
def test_killed_in_detach(daemon: Daemon, point: str) -> None:
    daemon.use_bridge()
    daemon.start()
    pod = asyncio.run(_run(daemon))
    daemon.kill()
    daemon.point = point
    daemon.start()
    asyncio.run(_remove(daemon, pod))
    _after(daemon)
    assert daemon.pods() <= {pod}
    daemon.crictl("rmp", "-f", pod)
    wait_for(lambda: not daemon.left(), 20)


async def _run(daemon: Daemon) -> str:
    async with Cri(daemon.socket) as cri:
        return await cri.run_pod(pod_config("web", log_directory=daemon.logs, port_mappings=[PORT]))


async def _remove(daemon: Daemon, pod: str) -> None:
    async with Cri(daemon.socket) as cri:
        _, error = await attempt(cri.remove_pod(pod))
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def _after(daemon: Daemon) -> None:
    """Assert that the daemon killed itself, and start a sound one."""
    wait_for(lambda: not daemon.program.running(), 20)
    daemon.kill()
    daemon.point = ""
    daemon.start()
