"""One pod, several containers: what they share with each other, with other pods and with the host."""

import os
import pathlib

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.machine import read
from tests.support.world import World

STAY = "sleep 600"
NODE = {"namespace_options": {"network": 2, "pid": 2, "ipc": 2}}


async def test_containers_of_a_pod_reach_each_other_on_loopback(world: World) -> None:
    pod = await world.pod()
    await world.run(pod, ["httpd", "-f", "-p", "8080", "-h", "/www"])
    other = await world.run(pod, STAY)
    fetch = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://127.0.0.1:8080/ && exit 0; sleep 0.1; done; exit 1"
    assert await world.cri.output(other, "sh", "-c", fetch) == "Hello from crishim.\n"


async def test_a_pod_reaches_another_by_its_address(world: World) -> None:
    server, client = await world.pod(), await world.pod()
    await world.run(server, ["httpd", "-f", "-p", "8080", "-h", "/www"])
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=server.id))
    url = f"http://{reply.status.network.ip}:8080/"
    fetch = f"for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - {url} && exit 0; sleep 0.1; done; exit 1"
    assert (await world.once(fetch, pod=client)).stdout == "Hello from crishim.\n"


async def test_anyone_in_a_pod_serves_any_port_unless_the_request_says_otherwise(
    world: World,
) -> None:
    keys = ("net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range")
    script = f"cat {' '.join(f'/proc/sys/{key}' for key in keys)}; httpd -p 80 -h /www"
    nobody = {
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 1000},
        "capabilities": {"drop_capabilities": ["ALL"]},
    }
    outcome = await world.once(script, pod=await world.pod(), security=nobody)
    assert outcome.stdout.split()[:3] == ["0", "0", "2147483647"]
    assert (outcome.code, outcome.stderr) == (0, "")
    own = await world.pod(sysctls={"net.ipv4.ip_unprivileged_port_start": "81", "net/ipv4/ping_group_range": "7 7"})
    outcome = await world.once(script, pod=own, security=nobody)
    assert outcome.stdout.split()[:3] == ["81", "7", "7"]
    assert "bind: Permission denied" in outcome.stderr
    hosts = [read(f"/proc/sys/{key}").decode().split() for key in keys]
    shared = await world.pod(security=NODE)
    outcome = await world.once(script.partition(";")[0], pod=shared, security=NODE)
    assert [line.split() for line in outcome.stdout.splitlines()] == hosts


async def test_hostname_hosts_and_resolv_conf_are_the_pods(world: World) -> None:
    dns = {"servers": ["192.0.2.53"], "searches": ["cluster.local"], "options": ["ndots:5"]}
    pod = await world.pod(hostname="here", dns_config=dns)
    reply = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    outcome = await world.once("hostname; cat /etc/hostname /etc/resolv.conf; cat /etc/hosts >&2", pod=pod)
    lines = outcome.stdout.splitlines()
    assert lines[:2] == ["here", "here"]
    assert sorted(line for line in lines[2:] if line and not line.startswith("#")) == [
        "nameserver 192.0.2.53",
        "options ndots:5",
        "search cluster.local",
    ]
    hosts = [line.split() for line in outcome.stderr.splitlines() if line and not line.startswith("#")]
    assert ["127.0.0.1", "localhost"] in hosts
    assert any(row[0] == reply.status.network.ip and "here" in row[1:] for row in hosts)


async def test_shared_memory_and_ipc_are_the_pods_and_processes_the_containers(world: World) -> None:
    pod = await world.pod()
    one = await world.run(pod, f"echo shared > /dev/shm/file; {STAY}")
    two = await world.run(pod, STAY)
    other = await world.run(await world.pod(), STAY)
    assert await world.cri.output(two, "cat", "/dev/shm/file") == "shared\n"
    assert (await world.cri.exec(other, "cat", "/dev/shm/file")).exit_code != 0
    links = {name: await world.cri.output(c, "readlink", "/proc/self/ns/ipc") for name, c in (("1", one), ("2", two))}
    assert links["1"] == links["2"] != await world.cri.output(other, "readlink", "/proc/self/ns/ipc")
    pids = [await world.cri.output(c, "readlink", "/proc/self/ns/pid") for c in (one, two)]
    assert pids[0] != pids[1]
    assert "sh -c echo shared" not in await world.cri.output(two, "ps")


async def test_a_pod_on_the_host_uses_the_hosts_namespaces(world: World) -> None:
    pod = await world.pod(security=NODE)
    container = await world.run(pod, STAY, security=NODE)
    for kind in ("net", "pid", "ipc"):
        inside = await world.cri.output(container, "readlink", f"/proc/self/ns/{kind}")
        assert inside.strip() == os.readlink(f"/proc/self/ns/{kind}"), kind
    name = f"{world.instance.name}-shared"
    try:
        await world.cri.output(container, "sh", "-c", f"echo inside > /dev/shm/{name}")
        assert read(f"/dev/shm/{name}") == b"inside\n"
    finally:
        pathlib.Path(f"/dev/shm/{name}").unlink(missing_ok=True)
    status = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert status.status.linux.namespaces.options.network == api.NODE


async def test_containers_of_a_pod_with_one_process_namespace_see_each_other(world: World) -> None:
    shared = {"namespace_options": {"pid": 0}}
    pod = await world.pod(security=shared)
    await world.run(pod, "exec sleep 611", security=shared)
    two = await world.run(pod, STAY, security=shared)
    assert "sleep 611" in await world.cri.output(two, "ps")
    assert (await world.cri.output(two, "sh", "-c", "echo $$")).strip() != "1"


async def test_what_a_container_writes_is_its_own_and_the_image_stays(world: World) -> None:
    pod = await world.pod()
    one = await world.run(pod, f"echo changed > /www/index.html; rm /etc/group; {STAY}")
    two = await world.run(pod, STAY)
    assert await world.cri.output(one, "cat", "/www/index.html") == "changed\n"
    assert await world.cri.output(two, "cat", "/www/index.html") == "Hello from crishim.\n"
    assert (await world.cri.exec(one, "cat", "/etc/group")).exit_code == 1
    assert (await world.cri.exec(two, "cat", "/etc/group")).exit_code == 0


async def test_no_root_of_a_container_is_mounted_in_the_hosts_namespace(world: World) -> None:
    pod = await world.pod()
    await world.run(pod, STAY)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        ours = [line for line in file if world.instance.base in line]
    assert not any(" - overlay " in line for line in ours)


async def test_memory_and_pids_limits_are_in_force_and_an_oom_kill_is_told(world: World) -> None:
    limits = {"memory_limit_in_bytes": 32 << 20, "memory_swap_limit_in_bytes": 32 << 20}
    outcome = await world.once("exec tail /dev/zero", resources=limits)
    assert (outcome.code, outcome.status.reason) == (137, "OOMKilled")
    pod = await world.pod()
    container = await world.run(pod, STAY)
    killed = await world.cri.exec(container, "sh", "-c", "kill -9 $$")
    assert killed.exit_code == 137
    await world.cri.stop(container)
    status = await world.cri.wait_exit(container)
    assert (status.exit_code, status.reason) == (137, "Error")
