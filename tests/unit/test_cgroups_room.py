"""What the host leaves to a group, and changes that are whole or taken back, with plain directories as groups."""

import os
from pathlib import Path

import pytest

from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.cgroups.limits import Limits
from crishim.linux.cgroups.room import host_problems
from crishim.linux.cgroups.settings import Write
from crishim.linux.cgroups.update import RefusedError, change, field_of, take_back

USED = ("memory", "cpu", "cpuset", "hugetlb")


def v1(path: Path) -> Layout:
    return Layout(1, tuple(Hierarchy(f"{path}/{name}", (name,)) for name in USED))


def v2(path: Path) -> Layout:
    return Layout(2, (), Hierarchy(str(path), USED))


def fill(directory: str, **files: str) -> None:
    os.makedirs(directory, exist_ok=True)
    for name, text in files.items():
        Path(directory, name.replace("__", ".")).write_text(text, encoding="ascii")


def fields(limits: Limits, layout: Layout, parent: str = "/kubepods/pod1") -> list[str]:
    return [field for field, _ in host_problems(limits, layout, parent, 100_000)]


@pytest.mark.parametrize(
    ("cpus", "bad"), [("0-1", False), ("3", False), ("0,3", False), ("2", True), ("1-3", True), ("0-99", True)]
)
def test_cpus_and_nodes_are_compared_with_the_nearest_group_that_has_any(tmp_path: Path, cpus: str, bad: bool) -> None:
    fill(f"{tmp_path}/cpuset/kubepods", cpuset__effective_cpus="0-1,3\n", cpuset__effective_mems="0\n")
    fill(f"{tmp_path}/cpuset/kubepods/pod1", cpuset__effective_cpus="\n")
    assert fields(Limits(cpuset_cpus=cpus), v1(tmp_path)) == ["cpuset_cpus"] * bad
    assert fields(Limits(cpuset_mems=cpus), v1(tmp_path)) == ["cpuset_mems"]
    fill(f"{tmp_path}/kubepods", cpuset__cpus__effective="0-1,3\n", cpuset__mems__effective="0\n")
    assert fields(Limits(cpuset_cpus=cpus, cpuset_mems="0"), v2(tmp_path)) == ["cpuset_cpus"] * bad


def test_what_cannot_be_read_is_not_judged(tmp_path: Path) -> None:
    limits = Limits(cpuset_cpus="7", cpu_quota=10**9, hugepages=(("2MB", 1),), unified={"memory.high": "1"})
    assert fields(limits, v1(tmp_path)) == []
    assert fields(limits, v2(tmp_path)) == []


@pytest.mark.parametrize(
    ("limits", "bad"),
    [
        (Limits(cpu_quota=50_000), False),
        (Limits(cpu_quota=50_001), True),
        (Limits(cpu_quota=50_000, cpu_period=50_000), True),
        (Limits(cpu_quota=-1), False),
        (Limits(cpu_shares=4), False),
    ],
)
def test_a_quota_above_the_pods_is_one_on_version_1_alone(tmp_path: Path, limits: Limits, bad: bool) -> None:
    fill(f"{tmp_path}/cpu/kubepods", cpu__cfs_quota_us="100000\n", cpu__cfs_period_us="200000\n")
    fill(f"{tmp_path}/cpu/kubepods/pod1", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert fields(limits, v1(tmp_path)) == ["cpu_quota"] * bad
    fill(f"{tmp_path}/kubepods/pod1", cpu__max="50000 100000\n")
    assert fields(limits, v2(tmp_path)) == []


def test_pages_and_control_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    fill(f"{tmp_path}/kubepods/pod1", hugetlb__2MB__max="max\n", memory__high="max\n")
    limits = Limits(hugepages=(("2MB", 1), ("16GB", 0)), unified={"memory.high": "1", "memory.hihg": "1"})
    assert fields(limits, v2(tmp_path)) == ["hugepage_limits[1].page_size", "unified['memory.hihg']"]


def test_a_change_that_is_refused_half_way_is_taken_back(tmp_path: Path) -> None:
    fill(str(tmp_path), cpu__shares="512\n", io__max="8:0 rbps=1\n8:16 rbps=2\n", cpuset__cpus="")
    here = str(tmp_path)
    good = [Write(here, "cpu.shares", "300"), Write(here, "cpuset.cpus", "0")]
    with pytest.raises(RefusedError, match=r"write cpu\.gone=7: No such file") as caught:
        change([*good, Write(here, "cpu.gone", "7")])
    assert list(caught.value.stuck) == []
    assert caught.value.write.file == "cpu.gone"
    assert Path(here, "cpu.shares").read_text(encoding="ascii").startswith("512")
    old = change([*good, Write(here, "io.max", "8:0 rbps=9")])
    assert [(write.file, write.value) for write in old] == [
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
        ("cpuset.cpus", "\n"),
        ("cpu.shares", "512"),
    ]
    os.unlink(f"{here}/io.max")
    assert [write.file for write in take_back(old)] == ["io.max", "io.max"]


def test_a_write_leads_to_its_field() -> None:
    limits = Limits(unified={"memory.max": "5"})
    names = {
        "cpu.cfs_quota_us": "cpu_quota",
        "hugetlb.2MB.max": "hugepage_limits",
        "memory.max": "unified['memory.max']",
    }
    for file, field in names.items():
        assert field_of(Write("/g", file, "5"), limits) == field
    assert field_of(Write("/g", "memory.max", "6"), limits) == "memory_limit_in_bytes"
