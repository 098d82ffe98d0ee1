"""SIGKILL of the real daemon between all steps of attach and detach: after the restart nothing is without an owner."""

import asyncio
import re
from collections.abc import Iterator

import grpc
import pytest

from tests.integration.network_topology import Namespace, need_network_namespaces
from tests.support.abilities import need_containers, need_program
from tests.support.configs import pod_config
from tests.support.cri import Cri, attempt
from tests.support.waiting import wait_for
from tests.support.walled import Walled

SUBNETS = ("10.207.7.0/28", "fd00:207:7::/64")
PORTS = [
    {"protocol": "TCP", "container_port": 80, "host_port": 8080},
    {"protocol": "UDP", "container_port": 53, "host_port": 5353},
]
ATTACH = (
    "take a lease",
    "admit and publish",
    "create the link",
    "configure the pod's side",
    "give addresses",
    "forget flows",
    "commit the sandbox",
)
DETACH = ("take ports back", "forget flows", "remove the pod", "commit the stop", "release leases", "dismiss")


@pytest.fixture
def walled(test_leaks: None) -> Iterator[Walled]:
    need_containers()
    need_network_namespaces()
    need_program("nft", "nftables")
    with Namespace() as host:
        host.ip("link set lo up")
        made = Walled(host, SUBNETS)
        yield made
        made.point = ""
        made.close()


def pods(walled: Walled) -> set[str]:
    return set(walled.crictl("pods", "-q", "--no-trunc").stdout.split())


def owners(walled: Walled) -> set[str]:
    """Return the pods that published ports name."""
    rules = walled.host.run("nft", "list", "table", "inet", f"crishim-{walled.bridge}")
    return set(re.findall(r'comment "([0-9a-f]{64})', rules))


def senders(walled: Walled) -> set[str]:
    """Return the digits of the links that may send."""
    shown = walled.host.run("nft", "list", "table", "bridge", f"crishim-{walled.bridge}")
    return set(re.findall(r'"v[0-9a-f]{4}([0-9a-f]{10})"', shown))


def without_owner(walled: Walled) -> dict[str, set[str]]:
    """Return everything in the kernel and the store that belongs to no pod which is listed."""
    listed = pods(walled)
    short = {name[5:] for name in walled.links()}
    found = {
        "leases": walled.leases() - listed,
        "ports": owners(walled) - listed,
        "namespaces": walled.namespaces() - listed,
        "directories": walled.directories() - listed,
        "links": {name for name in short if not any(pod.startswith(name) for pod in listed)},
        "senders": {name for name in senders(walled) if not any(pod.startswith(name) for pod in listed)},
    }
    return {kind: names for kind, names in found.items() if names}


def everything(walled: Walled) -> int:
    held = (walled.leases(), owners(walled), senders(walled), walled.namespaces(), walled.directories(), walled.links())
    return sum(len(names) for names in held)


def start_to_die(walled: Walled, point: str) -> None:
    walled.point = point
    walled.start()
    walled.point = ""


def died(walled: Walled) -> None:
    """Assert that the daemon killed itself, and start a sound one."""
    wait_for(lambda: not walled.program.running(), 20)
    walled.kill()
    walled.start()


def nothing_is_left(walled: Walled) -> None:
    wait_for(lambda: not without_owner(walled), 20)
    for pod in pods(walled):
        walled.crictl("rmp", "-f", pod)
    wait_for(lambda: everything(walled) == 0, 20)


async def run_pod(walled: Walled, name: str) -> str:
    async with Cri(walled.socket) as cri:
        return await cri.run_pod(pod_config(name, log_directory=walled.logs, port_mappings=PORTS))


async def remove_pod(walled: Walled, pod: str) -> None:
    async with Cri(walled.socket) as cri:
        await cri.remove_pod(pod)


@pytest.mark.parametrize("step", ATTACH)
def test_killed_in_attach(walled: Walled, step: str) -> None:
    for when in ("before", "after"):
        start_to_die(walled, f"{when} {step}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            asyncio.run(run_pod(walled, "web"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        died(walled)
        committed = (when, step) == ("after", "commit the sandbox")
        assert len(pods(walled)) == (1 if committed else 0)
        nothing_is_left(walled)
        # and the next pod gets the ports and an address
        asyncio.run(remove_pod(walled, asyncio.run(run_pod(walled, "next"))))
        walled.kill()


@pytest.mark.parametrize("step", DETACH)
def test_killed_in_detach(walled: Walled, step: str) -> None:
    for when in ("before", "after"):
        walled.start()
        pod = asyncio.run(run_pod(walled, "web"))
        walled.kill()
        start_to_die(walled, f"{when} {step}")
        _, error = asyncio.run(attempt(remove_pod(walled, pod)))  # leases go when the answer may be out already
        assert error is None or error.code() is grpc.StatusCode.UNAVAILABLE
        died(walled)
        assert pods(walled) <= {pod}
        nothing_is_left(walled)
        walled.kill()
