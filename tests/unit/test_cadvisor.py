"""cAdvisor's metrics without a kernel: the groups' files of both versions, all 56 names, and their encoding."""

import dataclasses
from pathlib import Path

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.linux.cgroups.details import DetailReaders, Details, DiskUse, HugePages, further_files
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.cgroups.stats import Readers, Stall, Stalls
from crishim.linux.processes import Census
from crishim.network.counters import InterfaceCounters
from crishim.pods.cadvisor import (
    DESCRIPTORS,
    ContainerMetrics,
    Disk,
    PodMetrics,
    Series,
    container_series,
    image_label,
    pod_series,
)
from crishim.pods.views import FsStats
from crishim.request import ImageSpec, Resources
from crishim.server.convert.metrics import MetricsEncoder, descriptors
from tests.fakes.cri_backend import NOW, container_view, sandbox_view
from tests.unit.test_cgroups_stats import V2_FILES, fill, v1_files, v2

DISK = Disk("/dev/vda", 1000, 50, 7)


def details_of(layout: Layout) -> Details:
    readers = Readers(layout)
    found = DetailReaders(readers)
    try:
        details = found.read("/g")
    finally:
        found.close()
        readers.close()
    assert details is not None
    return details


def full(tmp_path: Path) -> Details:
    fill(tmp_path / "g", V2_FILES)
    fill(
        tmp_path / "g",
        {
            "cpu.stat": b"usage_usec 9000000\nuser_usec 5000000\nsystem_usec 4000000\n"
            b"nr_periods 40\nnr_throttled 4\nthrottled_usec 3000000\n",
            "memory.stat": V2_FILES["memory.stat"] + b"file_mapped 8192\nkernel 77\n",
            "memory.peak": b"2000000\n",
            "memory.events": b"low 0\nhigh 0\nmax 6\noom 2\noom_kill 1\noom_group_kill 0\n",
            "pids.max": b"100\n",
            "io.stat": b"254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 rbytes=1\n",
            "hugetlb.2MB.current": b"4194304\n",
        },
    )
    layout = Layout(2, (), Hierarchy(str(tmp_path), ("cpu", "memory", "pids", "io", "hugetlb")))
    return details_of(layout)


def test_the_files_of_v2(tmp_path: Path) -> None:
    found = full(tmp_path)
    assert (found.cpu_user, found.cpu_system) == (5_000_000_000, 4_000_000_000)
    assert (found.periods, found.throttled_periods, found.throttled_time) == (40, 4, 3_000_000_000)
    assert (found.cache, found.mapped_file, found.kernel, found.peak) == (500000, 8192, 77, 2_000_000)
    assert (found.limit_hits, found.oom_kills, found.pids_max) == (6, 1, 100)
    assert found.disk_bytes[:3] == (
        DiskUse(254, 0, "Read", 4096),
        DiskUse(254, 0, "Write", 8192),
        DiskUse(254, 0, "Discard", 0),
    )
    assert found.disk_operations[:2] == (DiskUse(254, 0, "Read", 1), DiskUse(254, 0, "Write", 2))
    assert found.huge_pages == (HugePages("2MB", 4194304, None),)


def test_the_files_of_v1(tmp_path: Path) -> None:
    v1_files(tmp_path)
    fill(tmp_path / "cpuacct" / "g", {"cpuacct.stat": b"user 150\nsystem 250\n"})
    fill(tmp_path / "cpu" / "g", {"cpu.stat": b"nr_periods 9\nnr_throttled 2\nthrottled_time 5000000000\n"})
    fill(
        tmp_path / "memory" / "g",
        {
            "memory.kmem.usage_in_bytes": b"88\n",
            "memory.max_usage_in_bytes": b"4000\n",
            "memory.failcnt": b"3\n",
            "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "memory.stat": b"pgfault 5\npgmajfault 1\ntotal_cache 10\ntotal_mapped_file 20\ntotal_pgfault 8\n",
        },
    )
    fill(tmp_path / "pids" / "g", {"pids.max": b"max\n"})
    moved = {"blkio.throttle.io_service_bytes_recursive": b"8:0 Read 512\n8:0 Write 0\nTotal 512\n"}
    fill(tmp_path / "blkio" / "g", {**moved, "blkio.throttle.io_serviced_recursive": b"8:0 Read 1\nTotal 1\n"})
    huge = {"hugetlb.1GB.usage_in_bytes": b"0\n", "hugetlb.1GB.max_usage_in_bytes": b"9\n"}
    fill(tmp_path / "hugetlb" / "g", huge)
    names = ("memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb")
    layout = Layout(1, tuple(Hierarchy(f"{tmp_path}/{n}", (n,)) for n in names))
    found = details_of(layout)
    assert (found.cpu_user, found.cpu_system) == (1_500_000_000, 2_500_000_000)
    assert (found.periods, found.throttled_periods, found.throttled_time) == (9, 2, 5_000_000_000)
    assert (found.cache, found.mapped_file, found.kernel, found.peak) == (10, 20, 88, 4000)
    assert (found.limit_hits, found.oom_kills, found.pids_max) == (3, 2, None)
    assert (found.own_page_faults, found.own_major_page_faults, found.stats.page_faults) == (5, 1, 8)
    assert found.disk_bytes == (DiskUse(8, 0, "Read", 512), DiskUse(8, 0, "Write", 0))
    assert found.huge_pages == (HugePages("1GB", 0, 9),)


def test_a_group_without_further_files_has_what_its_sample_has(tmp_path: Path) -> None:
    fill(tmp_path / "g", V2_FILES)
    found = details_of(v2(tmp_path))
    assert (found.stats.pids, found.peak, found.disk_bytes, found.huge_pages) == (3, None, (), ())
    assert further_files(v2(tmp_path)) == 4
    readers = Readers(v2(tmp_path))
    assert DetailReaders(readers).read("/absent") is None


def everything(tmp_path: Path) -> tuple[list[Series], list[Series]]:
    """Return the series of a pod and of its container where nothing is lacking."""
    stall = Stalls(Stall(2_500_000, 0, 0, 0), Stall(1_999_999, 0, 0, 0))
    found = full(tmp_path)
    stats = found.stats._replace(cpu_pressure=stall, memory_pressure=stall, io_pressure=stall)
    found = found._replace(stats=stats, huge_pages=(HugePages("2MB", 1, 2),))
    wanted = Resources(cpu_quota=5000, memory_limit_in_bytes=77, unified={"memory.min": "5"})
    view = dataclasses.replace(container_view(1), resources=wanted)
    written = FsStats(NOW - 7, "/", 4096, 3)
    pod = pod_series(sandbox_view(1), found, [InterfaceCounters("eth0", 1, 2, 3, 4, 5, 6, 7, 8)], NOW)
    return pod, container_series(view, found, written, DISK, Census(3, 30, 2, 1024), NOW)


def test_all_names_and_their_values(tmp_path: Path) -> None:
    pod, container = everything(tmp_path)
    assert {key[0] for key, _, _ in pod + container} == {found.name for found in DESCRIPTORS}
    inside = {(key[0].removeprefix("container_"), *key[1:]): value for key, value, _ in container}
    assert inside["pressure_cpu_waiting_seconds_total",] == 2
    assert inside["pressure_cpu_stalled_seconds_total",] == 1
    assert inside["cpu_cfs_throttled_seconds_total",] == 3
    assert inside["spec_memory_reservation_limit_bytes",] == 5
    assert (inside["spec_cpu_period",], inside["spec_cpu_shares",]) == (100_000, 1024)
    assert (inside["processes",], inside["threads",], inside["threads_max",]) == (3, 3, 100)
    assert inside["ulimits_soft", "max_open_files"] == 1024
    times = {key[0]: at for key, _, at in container}
    assert times["container_fs_usage_bytes"] == NOW - 7  # when it was measured
    around = {(key[0].removeprefix("container_"), *key[1:]): value for key, value, _ in pod}
    received, sent = "network_receive_{}_total", "network_transmit_{}_total"
    kinds = ("bytes", "packets", "errors", "packets_dropped")
    assert [around[received.format(kind), "eth0"] for kind in kinds] == [1, 2, 3, 4]
    assert [around[sent.format(kind), "eth0"] for kind in kinds] == [5, 6, 7, 8]


def test_the_encoding_is_protobufs_and_forgets_what_is_gone(tmp_path: Path) -> None:
    pod, container = everything(tmp_path)
    view = container_view(1)
    given = PodMetrics(sandbox_view(1), "/pods/1", pod, [ContainerMetrics(view, "/pods/1/c", container)])
    encoder = MetricsEncoder()
    keys = {found.name: found.label_keys for found in descriptors().descriptors}
    for _ in range(2):
        (message,) = pb.ListPodSandboxMetricsResponse.FromString(b"".join(encoder.pods([given]))).pod_metrics
        (inner,) = message.container_metrics
        assert (message.pod_sandbox_id, inner.container_id) == (sandbox_view(1).id, view.id)
        for owner, series in ((message, pod), (inner, container)):
            assert [(m.name, *m.label_values[6:]) for m in owner.metrics] == [key for key, _, _ in series]
            assert [(m.value.value, m.timestamp) for m in owner.metrics] == [(v, at) for _, v, at in series]
            assert all(m.HasField("value") and len(m.label_values) == len(keys[m.name]) for m in owner.metrics)
        assert list(inner.metrics[0].label_values[:6]) == [
            "main",
            "/pods/1/c",
            "docker.io/library/busybox:latest",
            view.id,
            "default",
            "pod-1",
        ]
    assert list(encoder.pods([])) == []
    assert encoder._kept == {}


def test_an_image_label_has_no_digest() -> None:
    view = container_view(1)
    for name in ("docker.io/library/web@sha256:" + "ab" * 32, "docker.io/library/web"):
        assert image_label(dataclasses.replace(view, image=ImageSpec(name))) == "docker.io/library/web"
