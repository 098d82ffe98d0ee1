"""The embedded network of a real daemon, seen from its own answers: status, metrics, a range used again and again."""

import asyncio
import json
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.network_topology import Namespace, inside, need_network_namespaces
from tests.support.abilities import need_containers, need_program
from tests.support.configs import pod_config
from tests.support.cri import Cri
from tests.support.frames import IPV6, frame, router, send_all
from tests.support.waiting import wait_for
from tests.support.walled import Walled

SUBNETS = ("10.209.7.0/28", "fd00:209:7::/64")
HOST_NETWORK = {"security_context": {"namespace_options": {"network": 2}}}
PORT = {"protocol": 0, "container_port": 80, "host_port": 8080}


@pytest.fixture
def walled(test_leaks: None) -> Iterator[Walled]:
    need_containers()
    need_network_namespaces()
    with Namespace() as host:
        host.ip("link set lo up")
        made = Walled(host, SUBNETS)
        made.start()
        yield made
        made.close()


def network(walled: Walled, pod: str) -> Any:
    return json.loads(walled.crictl("inspectp", pod).stdout)["info"]["network"]


def metrics(walled: Walled) -> str:
    with inside(walled.host.fd), urllib.request.urlopen(f"http://{walled.metrics}/metrics", timeout=20) as answer:
        return bytes(answer.read()).decode()


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{series} is not in\n{text}"
    return float(found[1])


def test_verbose_status_of_a_pod_through_its_life(walled: Walled) -> None:
    pod = walled.run_pod(pod_config("web", log_directory=walled.logs, port_mappings=[PORT]))
    seen = network(walled, pod)
    assert (seen["kind"], seen["namespace"]) == ("embedded", f"{walled.state}/ns/{pod}/net")
    assert seen["ports"] == [{"protocol": "tcp", "hostIP": "", "hostPort": 8080, "containerPort": 80}]
    eth0 = seen["interfaces"][1]
    assert (eth0["name"], eth0["mtu"], eth0["up"]) == ("eth0", 1500, True)
    assert {"10.209.7.2/28", "fd00:209:7::2/64"} <= set(eth0["addresses"])
    gateways = {route["gateway"] for route in seen["routes"] if route["destination"] == "default"}
    assert gateways == {"10.209.7.1", "fd00:209:7::1"}
    # what someone changes inside is what is shown
    subprocess.run(
        ["nsenter", f"--net={walled.state}/ns/{pod}/net", "ip", "link", "set", "eth0", "mtu", "1300"], check=True
    )
    assert network(walled, pod)["interfaces"][1]["mtu"] == 1300
    walled.crictl("stopp", pod)
    stopped = network(walled, pod)
    assert (stopped["kind"], stopped["ports"]) == ("embedded", [])
    assert stopped["attachment"]["ips"] == ["10.209.7.2", "fd00:209:7::2"]
    assert "interfaces" not in stopped
    host = walled.run_pod(pod_config("host", log_directory=walled.logs, linux=HOST_NETWORK))
    assert network(walled, host) == {"kind": "host", "namespace": "/proc/1/ns/net", "ports": []}


def test_a_pod_takes_no_router_and_no_redirect_from_whoever_is_beside_it(walled: Walled) -> None:
    pod = walled.run_pod(pod_config("web", log_directory=walled.logs))
    bridge = json.loads(walled.host.run("ip", "-j", "link", "show", walled.bridge))[0]["address"]
    with Namespace(f"{walled.state}/ns/{pod}/net") as within, within.socket(socket.SOCK_DGRAM) as heard:
        heard.bind(("", 7))
        with inside(walled.host.fd), socket.socket(type=socket.SOCK_DGRAM) as caller:
            send_all(walled.bridge, frame("33:33:00:00:00:01", bridge, IPV6, router("fe80::1")))
            caller.sendto(b"later", ("10.209.7.2", 7))
        assert heard.recv(100) == b"later"
        shown = within.run("ip", "-6", "addr") + within.run("ip", "-6", "route")
        switches = within.run("sh", "-c", "cd /proc/sys/net; cat ipv[46]/conf/eth0/accept_redirects").split()
    assert "fd66" not in shown
    assert switches == ["0", "0"]


def test_metrics_of_the_network(walled: Walled) -> None:
    pod = walled.run_pod(pod_config("web", log_directory=walled.logs, port_mappings=[PORT]))
    late = walled.config_file(pod_config("late", log_directory=walled.logs, port_mappings=[PORT]))
    assert walled.crictl("runp", late, check=False).returncode != 0
    text = metrics(walled)
    assert value(text, 'crishim_network_attach_duration_seconds_count{kind="embedded"}') == 1
    assert value(text, 'crishim_network_errors_total{code="AlreadyExists",plugin="embedded"}') == 1
    assert value(text, 'crishim_network_addresses{family="ipv4",state="used"}') == 1
    assert value(text, 'crishim_network_addresses{family="ipv4",state="free"}') == 12
    assert value(text, 'crishim_network_addresses{family="ipv6",state="used"}') == 1
    walled.crictl("rmp", "-f", pod)
    used = 'crishim_network_addresses{family="ipv4",state="used"}'
    wait_for(lambda: value(metrics(walled), used) == 0, 20)
    text = metrics(walled)
    # the pod that was refused was detached as well, for what it might have held
    assert value(text, 'crishim_network_detach_duration_seconds_count{kind="embedded"}') == 2
    assert "web" not in text
    promtool = need_program("promtool", "prometheus")
    run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


async def test_a_range_of_thirteen_addresses_never_runs_dry(walled: Walled) -> None:
    async with Cri(walled.socket) as cri:
        for number in range(100):
            pods = [pod_config(f"p{number}-{i}", log_directory=walled.logs) for i in range(2)]
            made = await asyncio.gather(*(cri.run_pod(config) for config in pods))
            await asyncio.gather(*(cri.remove_pod(pod) for pod in made))
    wait_for(lambda: not walled.leases() and not walled.links(), 20)
    assert walled.namespaces() == walled.directories() == set()
