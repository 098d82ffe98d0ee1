"""Limits to writes, on v1 and v2, without a kernel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.linux.cgroups.devices import DEFAULT, DeviceRule
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.cgroups.limits import lacking
from crishim.linux.cgroups.settings import Current, Limits, plan_settings, shares_to_weight

V2 = Layout(2, (), Hierarchy("/cg", ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")))
V1 = Layout(
    1,
    tuple(
        Hierarchy(f"/cg/{name}", (name,))
        for name in ("memory", "freezer", "cpu", "cpuacct", "cpuset", "devices", "pids", "hugetlb")
    ),
)
MIB = 1 << 20


def plain(
    limits: Limits, layout: Layout, current: Current | None = None, *, swap: bool = True
) -> list[tuple[str, str]]:
    """Return (file, value) in order."""
    return [(w.file, w.value) for w in plan_settings(limits, layout, "/g", current=current, swap=swap).writes]


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 0), (1, 1), (2, 1), (102, 17), (1024, 100), (2000, 170), (262144, 10000)],
)
def test_shares_become_weights_by_the_new_mapping(shares: int, weight: int) -> None:
    assert shares_to_weight(shares) == weight


@given(st.integers(2, 262143))
def test_more_shares_are_never_less_weight(shares: int) -> None:
    assert 1 <= shares_to_weight(shares) <= shares_to_weight(shares + 1) <= 10_000


def test_nothing_given_writes_nothing() -> None:
    assert plain(Limits(), V1) == []
    assert plain(Limits(), V2) == []


def test_v1_container() -> None:
    limits = Limits(
        cpu_period=50_000,
        cpu_quota=25_000,
        cpu_shares=512,
        memory_limit=64 * MIB,
        pids_limit=100,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        hugepages=(("2MB", 0),),
        devices=(DeviceRule("c", 1, 3, "rw"),),
    )
    settings = plan_settings(limits, V1, "/pod/c")
    assert [(w.directory, w.file, w.value) for w in settings.writes] == [
        ("/cg/devices/pod/c", "devices.deny", "a"),
        ("/cg/devices/pod/c", "devices.allow", "c 1:3 rw"),
        ("/cg/cpuset/pod/c", "cpuset.cpus", "0-1"),
        ("/cg/cpuset/pod/c", "cpuset.mems", "0"),
        ("/cg/cpu/pod/c", "cpu.shares", "512"),
        ("/cg/cpu/pod/c", "cpu.cfs_quota_us", "25000"),
        ("/cg/cpu/pod/c", "cpu.cfs_period_us", "50000"),
        ("/cg/memory/pod/c", "memory.limit_in_bytes", str(64 * MIB)),
        ("/cg/memory/pod/c", "memory.memsw.limit_in_bytes", str(64 * MIB)),
        ("/cg/pids/pod/c", "pids.max", "100"),
        ("/cg/hugetlb/pod/c", "hugetlb.2MB.limit_in_bytes", "0"),
        ("/cg/hugetlb/pod/c", "hugetlb.2MB.rsvd.limit_in_bytes", "0"),
    ]
    assert settings.device_program == b""


def test_v2_container() -> None:
    limits = Limits(
        cpu_period=50_000,
        cpu_quota=-1,
        cpu_shares=1024,
        memory_limit=64 * MIB,
        memory_swap_limit=96 * MIB,
        pids_limit=-1,
        hugepages=(("1GB", 5),),
        unified={"memory.high": "1000", "memory.oom.group": "1"},
        devices=DEFAULT,
    )
    settings = plan_settings(limits, V2, "/pod/c")
    assert {w.directory for w in settings.writes} == {"/cg/pod/c"}
    assert [(w.file, w.value) for w in settings.writes] == [
        ("cpu.weight", "100"),
        ("cpu.max", "max 50000"),
        ("memory.swap.max", str(32 * MIB)),
        ("memory.max", str(64 * MIB)),
        ("pids.max", "max"),
        ("hugetlb.1GB.max", "5"),
        ("hugetlb.1GB.rsvd.max", "5"),
        ("memory.high", "1000"),
        ("memory.oom.group", "1"),
    ]
    assert settings.device_program


def test_v2_unlimited_memory_frees_swap_too() -> None:
    assert plain(Limits(memory_limit=-1), V2) == [("memory.swap.max", "max"), ("memory.max", "max")]


def test_a_quota_alone_keeps_the_period_in_force() -> None:
    assert plain(Limits(cpu_quota=20_000), V2, Current(cpu_period=40_000)) == [("cpu.max", "20000 40000")]


def test_an_update_that_gives_no_devices_writes_no_devices() -> None:
    settings = plan_settings(Limits(cpu_quota=2000), V2, "/g", current=Current())
    assert settings.device_program == b""
    assert not any("devices" in w.file for w in plan_settings(Limits(cpu_quota=2000), V1, "/g").writes)


sizes = st.integers(1, 64).map(lambda n: n * MIB)


@given(sizes, st.one_of(st.just(0), st.just(-1), sizes), sizes, st.one_of(st.just(-1), sizes))
def test_v1_memory_never_exceeds_the_sum_on_the_way(new: int, new_swap: int, old: int, old_swap: int) -> None:
    if 0 < new_swap < new or 0 < old_swap < old:
        return
    limit, total = old, float("inf") if old_swap == -1 else old_swap
    for file, value in plain(
        Limits(memory_limit=new, memory_swap_limit=new_swap), V1, Current(memory_limit=old, memory_swap_limit=old_swap)
    ):
        if file == "memory.limit_in_bytes":
            limit = int(value)
        else:
            total = float("inf") if value == "-1" else int(value)
        assert limit <= total
    assert limit == new


@given(st.integers(1000, 1_000_000), st.integers(1000, 1_000_000), st.integers(1000, 1_000_000))
def test_v1_bandwidth_on_the_way_is_never_above_both_ends(period: int, quota: int, old_period: int) -> None:
    old_quota = 1000
    bound = max(quota / period, old_quota / old_period)
    now_period, now_quota = old_period, old_quota
    for file, value in plain(Limits(cpu_period=period, cpu_quota=quota), V1, Current(cpu_period=old_period)):
        if file == "cpu.cfs_period_us":
            now_period = int(value)
        else:
            now_quota = int(value)
        assert now_quota / now_period <= bound
    assert (now_period, now_quota) == (period, quota)


def test_what_the_host_lacks_is_named() -> None:
    bare = Layout(1, (Hierarchy("/cg/memory", ("memory",)),))
    limits = Limits(memory_limit=10, memory_swap_limit=20, hugepages=(("2MB", 0),))
    settings = plan_settings(limits, bare, "/g", swap=False)
    assert settings.degraded == ("swap", "hugepages")
    assert [(w.file, w.value) for w in settings.writes] == [("memory.limit_in_bytes", "10")]


def test_good_limits_have_no_problem() -> None:
    limits = Limits(cpu_period=100_000, cpu_quota=-1, memory_limit=MIB, memory_swap_limit=-1, cpuset_cpus="0,2-3")
    assert lacking(limits, V1) == []
    assert lacking(limits, V2) == []


def test_unified_keys_need_their_controller() -> None:
    assert [field for field, _ in lacking(Limits(unified={"rdma.max": "1", "memory.high": "1"}), V2)] == [
        "unified['rdma.max']"
    ]


def test_unified_needs_version_2() -> None:
    assert lacking(Limits(unified={"memory.high": "1"}), V1) == [
        ("unified['memory.high']", "needs cgroup v2; this host's controllers are on v1")
    ]


def test_a_limit_without_its_controller_is_a_problem() -> None:
    bare = Layout(1, (Hierarchy("/cg/freezer", ("freezer",)),))
    limits = Limits(memory_limit=1, cpu_quota=1000, pids_limit=1, cpuset_cpus="0")
    assert {field for field, _ in lacking(limits, bare)} == {
        "memory_limit_in_bytes",
        "cpu_quota",
        "pids_limit",
        "cpuset_cpus",
    }
