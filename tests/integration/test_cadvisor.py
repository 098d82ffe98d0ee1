"""cAdvisor's metrics of real containers: descriptors, labels, and figures that follow from what containers do."""

import asyncio
from typing import Any

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.machine import read
from tests.support.world import Pod, World

MIB = 1 << 20
BASE = ["container", "id", "image", "name", "namespace", "pod"]
STAY = "sleep 600"

ALL = (
    "blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total "
    "cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total "
    "file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total "
    "fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen "
    "memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file "
    "memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes "
    "network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total "
    "network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total "
    "network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total "
    "pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total "
    "pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total "
    "pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares "
    "spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds "
    "threads threads_max ulimits_soft "
)
NAMES = ALL.split()

GAUGES = [name for name in NAMES if not name.endswith(("_total", "failcnt"))] + ["fs_inodes_total"]

OF_THE_HOST = ("blkio_", "fs_reads_", "fs_writes_", "hugetlb_", "pressure_")
"""What a host without disks that count, huge pages or pressure does not have."""


async def descriptors(world: World) -> dict[str, Any]:
    reply = await world.cri.runtime.ListMetricDescriptors(api.ListMetricDescriptorsRequest())
    return {found.name.removeprefix("container_"): found for found in reply.descriptors}


async def scrape(world: World) -> dict[str, Any]:
    """Return the metrics by pod id."""
    reply = await world.cri.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest())
    return {found.pod_sandbox_id: found for found in reply.pod_metrics}


def series(owner: Any) -> dict[tuple[str, ...], int]:
    """Return the values of a pod or container by name and own labels."""
    return {
        (metric.name.removeprefix("container_"), *metric.label_values[len(BASE) :]): metric.value.value
        for metric in owner.metrics
    }


async def container_series(world: World, pod: Pod, container: str) -> dict[tuple[str, ...], int]:
    (found,) = [inner for inner in (await scrape(world))[pod.id].container_metrics if inner.container_id == container]
    return series(found)


async def logged(pod: Pod, name: str, text: bytes) -> None:
    """Wait until a container has written a text to its log."""
    async with asyncio.timeout(60):
        while text not in read(pod.log(name)):
            await asyncio.sleep(0.05)


async def test_all_56_are_described_and_every_series_fits_its_descriptor(world: World) -> None:
    described = await descriptors(world)
    assert sorted(described) == sorted(NAMES)
    assert all(found.help and list(found.label_keys[: len(BASE)]) == BASE for found in described.values())
    pod = await world.pod()
    resources = {"cpu_period": 100_000, "cpu_quota": 20_000, "memory_limit_in_bytes": 64 * MIB}
    container = await world.run(pod, STAY, name="main", resources=resources)
    found = (await scrape(world))[pod.id]
    (inner,) = found.container_metrics
    assert inner.container_id == container
    seen = set()
    for metric in (*found.metrics, *inner.metrics):
        name = metric.name.removeprefix("container_")
        assert len(metric.label_values) == len(described[name].label_keys), metric.name
        assert metric.HasField("value")  # kubelet takes it without asking
        assert metric.metric_type == (api.GAUGE if name in GAUGES else api.COUNTER)
        assert metric.timestamp > 1_700_000_000 * 10**9
        seen.add(name)
    assert {name for name in NAMES if name not in seen and not name.startswith(OF_THE_HOST)} == set()
    meta = pod.config["metadata"]
    own = dict(zip(BASE, inner.metrics[0].label_values, strict=False))
    assert own == {
        "container": "main",
        "id": f"{world.instance.cgroup_parent}/{pod.id}/{container}",
        "image": world.image,
        "name": container,
        "namespace": meta["namespace"],
        "pod": meta["name"],
    }
    whole = dict(zip(BASE, found.metrics[0].label_values, strict=False))
    assert (whole["container"], whole["image"], whole["pod"]) == ("", "", meta["name"])
    streamed: list[Any] = []
    async for part in world.cri.runtime.StreamPodSandboxMetrics(api.StreamPodSandboxMetricsRequest()):
        streamed += part.pod_sandbox_metrics
    assert [(one.pod_sandbox_id, len(one.metrics)) for one in streamed] == [(pod.id, len(found.metrics))]
    await world.cri.remove(container)
    assert not (await scrape(world))[pod.id].container_metrics
    await world.cri.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    assert pod.id not in await scrape(world)


async def test_figures_are_those_of_what_the_container_does(world: World) -> None:
    pod = await world.pod()
    resources = {
        "cpu_period": 50_000,
        "cpu_quota": 40_000,
        "cpu_shares": 512,
        "memory_limit_in_bytes": 96 * MIB,
        "memory_swap_limit_in_bytes": 96 * MIB,
    }
    # 30 MiB of tmpfs count as cache; three processes; a socket that listens; more than two seconds of CPU time.
    script = (
        "ulimit -Sn 321; dd if=/dev/zero of=/dev/shm/full bs=1M count=30 2>/dev/null; nc -l -p 4000 & sleep 600 &"
        " i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done; echo done; exec sleep 600"
    )
    container = await world.run(pod, script, name="busy", resources=resources)
    await logged(pod, "busy", b" done\n")
    found = await container_series(world, pod, container)
    assert found["spec_cpu_period",] == 50_000
    assert found["spec_cpu_quota",] == 40_000
    assert found["spec_cpu_shares",] == 512
    assert found["spec_memory_limit_bytes",] == found["spec_memory_swap_limit_bytes",] == 96 * MIB
    assert found["spec_memory_reservation_limit_bytes",] == 0
    assert found["processes",] == found["threads",] == 3
    assert found["threads_max",] == 0
    assert found["sockets",] == 1
    assert found["file_descriptors",] == 10  # three standard streams each, and the socket
    assert found["ulimits_soft", "max_open_files"] == 321
    assert 30 * MIB <= found["memory_cache",] <= found["memory_usage_bytes",] <= found["memory_max_usage_bytes",]
    assert found["memory_working_set_bytes",] >= 30 * MIB
    assert found["memory_failures_total", "pgfault", "container"] > 0
    assert found["cpu_usage_seconds_total", "total"] >= 1
    assert abs(found["cpu_usage_seconds_total", "total"] - found["cpu_user_seconds_total",]) <= 2
    assert found["cpu_cfs_periods_total",] >= found["cpu_cfs_throttled_periods_total",] > 0
    assert found["last_seen",] >= found["start_time_seconds",] > 1_700_000_000


async def test_a_kill_for_want_of_memory_is_counted(world: World) -> None:
    pod = await world.pod()
    script = "(head -c 200m /dev/zero | tail -c 150m >/dev/null); echo survived; exec sleep 600"
    container = await world.run(pod, script, resources={"memory_limit_in_bytes": 32 * MIB})
    async with asyncio.timeout(60):
        while (await container_series(world, pod, container)).get(("oom_events_total",)) != 1:
            await asyncio.sleep(0.1)
    assert (await container_series(world, pod, container))["memory_max_usage_bytes",] == 32 * MIB


async def test_ten_mebibytes_one_way_are_sent_here_and_received_there(world: World) -> None:
    sender, receiver = await world.pod(), await world.pod()
    await world.run(receiver, "sleep 600 | nc -l -p 5000 >/dev/null")
    status = await world.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=receiver.id))
    send = f"until dd if=/dev/zero bs=1M count=10 2>/dev/null | nc -w 5 {status.status.network.ip} 5000; do :; done"
    await world.run(sender, f"{send}; exec sleep 600")
    async with asyncio.timeout(60):
        while series((await scrape(world))[receiver.id])["network_receive_bytes_total", "eth0"] < 10 * MIB:
            await asyncio.sleep(0.1)
    found = await scrape(world)
    out, into = series(found[sender.id]), series(found[receiver.id])
    limit = int(1.1 * 10 * MIB)
    for one, other in ((out, into), (into, out)):
        way, back = ("transmit", "receive") if one is out else ("receive", "transmit")
        assert 10 * MIB <= one[f"network_{way}_bytes_total", "eth0"] < limit
        assert one[f"network_{back}_bytes_total", "eth0"] < MIB
        assert one[f"network_{way}_packets_total", "eth0"] >= 100
        assert one[f"network_{way}_errors_total", "eth0"] == one[f"network_{way}_packets_dropped_total", "eth0"] == 0
        assert other
    for pod, way, back in ((sender, "tx_bytes", "rx_bytes"), (receiver, "rx_bytes", "tx_bytes")):
        interface = (await world.cri.pod_stats(pod.id)).linux.network.default_interface
        assert 10 * MIB <= getattr(interface, way).value < limit
        assert getattr(interface, back).value < MIB
