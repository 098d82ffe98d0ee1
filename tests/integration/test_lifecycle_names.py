"""hostname, hosts and resolv.conf as containers see them: for own and host networks, in every container alike."""

import os
from typing import Any

import grpc
import pytest

from tests.support.configs import pod_config
from tests.support.cri import refused
from tests.support.machine import read
from tests.support.world import World

HOST_NETWORK = {"namespace_options": {"network": 2}}
FULL = {"servers": ["192.0.2.53", "2001:db8::53"], "searches": ["a.test", "test"], "options": ["ndots:5", "edns0"]}
FULL_TEXT = "search a.test test\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:5 edns0\n"


@pytest.mark.parametrize("network", ["own", "host"])
@pytest.mark.parametrize("dns", ["none", "empty", "full"])
async def test_no_dns_an_empty_one_and_a_full_one_are_three_things(world: World, network: str, dns: str) -> None:
    more: dict[str, Any] = {} if dns == "none" else {"dns_config": {} if dns == "empty" else FULL}
    security = HOST_NETWORK if network == "host" else {}
    pod = await world.pod(security=security, **more)
    outcome = await world.once("cat /etc/resolv.conf", pod=pod, security=security)
    expected = {"none": read("/etc/resolv.conf").decode(), "empty": "", "full": FULL_TEXT}
    assert (outcome.code, outcome.stdout) == (0, expected[dns])


async def test_a_pod_of_the_hosts_network_has_the_hosts_names(world: World) -> None:
    pod = await world.pod(security=HOST_NETWORK)
    script = "hostname; cat /etc/hostname; cat /etc/hosts >&2"
    outcome = await world.once(script, pod=pod, security=HOST_NETWORK)
    assert outcome.stdout.split() == [os.uname().nodename] * 2
    assert outcome.stderr == read("/etc/hosts").decode()


async def test_a_pod_without_a_hostname_has_one_name_everywhere(world: World) -> None:
    outcome = await world.once("hostname; cat /etc/hostname; cat /etc/hosts >&2")
    assert outcome.stdout.split() == [os.uname().nodename] * 2
    assert os.uname().nodename.partition(".")[0] in outcome.stderr.splitlines()[-1].split()


async def test_a_full_name_has_its_short_form_in_hosts(world: World) -> None:
    pod = await world.pod(hostname="web-0.shop.example")
    outcome = await world.once("hostname; cat /etc/hostname; tail -n 1 /etc/hosts >&2", pod=pod)
    assert outcome.stdout.split() == ["web-0.shop.example"] * 2
    assert outcome.stderr.split()[1:] == ["web-0.shop.example", "web-0"]


async def test_the_longest_hostname_fits_and_a_longer_one_is_refused(world: World) -> None:
    longest = "h" * 64  # HOST_NAME_MAX, sethostname(2)
    pod = await world.pod(hostname=longest)
    assert (await world.once("hostname", pod=pod)).stdout == f"{longest}\n"
    config = pod_config("longer", hostname=f"{longest}h")
    assert "config.hostname: " in await refused(world.cri.run_pod(config), grpc.StatusCode.INVALID_ARGUMENT)


async def test_all_containers_of_a_pod_have_the_same_files(world: World) -> None:
    pod = await world.pod(hostname="same", dns_config=FULL)
    one = await world.run(pod, "sleep 600")
    two = await world.run(pod, "sleep 600")
    for name in ("hosts", "hostname", "resolv.conf"):
        files = [await world.cri.output(where, "stat", "-c", "%d:%i", f"/etc/{name}") for where in (one, two)]
        assert files[0] == files[1]
    await world.cri.output(one, "sh", "-c", "echo '192.0.2.9 added' >>/etc/hosts")
    assert (await world.cri.output(two, "tail", "-n", "1", "/etc/hosts")) == "192.0.2.9 added\n"
    other = await world.once("cat /etc/hosts", pod=await world.pod(hostname="other"))
    assert "added" not in other.stdout
