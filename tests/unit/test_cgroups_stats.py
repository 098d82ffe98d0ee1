"""Statistics from files with the texts of both versions; a directory stands for the hierarchy."""

import os
from pathlib import Path

from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.cgroups.stats import Readers, Stall, files_per_group

PSI = b"some avg10=1.50 avg60=0.78 avg300=1.13 total=53842721\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=7\n"
V2_FILES = {
    "cpu.stat": b"usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
    "memory.current": b"1000000\n",
    "memory.stat": b"anon 400000\nfile 500000\ninactive_anon 7\ninactive_file 300000\npgfault 55\npgmajfault 5\n",
    "memory.max": b"max\n",
    "memory.swap.current": b"4096\n",
    "memory.swap.max": b"8192\n",
    "pids.current": b"3\n",
    "cpu.pressure": PSI,
    "memory.pressure": PSI,
    "io.pressure": PSI,
}
V1_STAT = (
    b"cache 1\nrss 2\ninactive_file 9\nhierarchical_memory_limit 5000\nhierarchical_memsw_limit 7000\n"
    b"total_rss 2000\ntotal_inactive_file 1200\ntotal_pgfault 8\ntotal_pgmajfault 1\ntotal_swap 64\n"
)


def fill(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_bytes(text)


def v2(root: Path) -> Layout:
    return Layout(2, (), Hierarchy(str(root), ("cpu", "memory", "pids")))


def v1(root: Path) -> Layout:
    return Layout(1, tuple(Hierarchy(f"{root}/{n}", (n,)) for n in ("memory", "cpuacct", "pids")))


def v1_files(root: Path, stat: bytes = V1_STAT) -> None:
    fill(root / "cpuacct" / "g", {"cpuacct.usage": b"42\n"})
    fill(root / "memory" / "g", {"memory.usage_in_bytes": b"3000\n", "memory.stat": stat})
    fill(root / "pids" / "g", {"pids.current": b"2\n"})


def test_v2(tmp_path: Path) -> None:
    fill(tmp_path / "g", V2_FILES)
    readers = Readers(v2(tmp_path))
    sample = readers.read("/g")
    readers.close()
    assert sample is not None
    assert sample.cpu_usage == 1_234_567_000
    assert (sample.memory_usage, sample.working_set, sample.rss) == (1_000_000, 700_000, 400_000)
    assert (sample.page_faults, sample.major_page_faults) == (55, 5)
    assert (sample.memory_limit, sample.swap_usage, sample.swap_limit) == (None, 4096, 8192)
    assert sample.pids == 3
    assert sample.cpu_pressure is not None
    assert sample.cpu_pressure.some == Stall(53842721, 1.5, 0.78, 1.13)
    assert sample.io_pressure is not None
    assert sample.io_pressure.full.total == 7


def test_v1_takes_the_lines_that_count_the_groups_below(tmp_path: Path) -> None:
    v1_files(tmp_path)
    readers = Readers(v1(tmp_path))
    sample = readers.read("/g")
    readers.close()
    assert sample is not None
    assert (sample.cpu_usage, sample.memory_usage, sample.working_set, sample.rss) == (42, 3000, 1800, 2000)
    assert (sample.memory_limit, sample.swap_limit, sample.swap_usage) == (5000, 2000, 64)
    assert (sample.page_faults, sample.major_page_faults, sample.pids) == (8, 1, 2)
    assert sample.cpu_pressure is None


def test_v1_without_a_limit(tmp_path: Path) -> None:
    v1_files(tmp_path, V1_STAT.replace(b"limit 5000", b"limit 9223372036854771712").replace(b"7000", b"9" * 19))
    readers = Readers(v1(tmp_path))
    sample = readers.read("/g")
    readers.close()
    assert sample is not None
    assert (sample.memory_limit, sample.swap_limit) == (None, None)


def test_the_working_set_is_never_below_zero(tmp_path: Path) -> None:
    v1_files(tmp_path, V1_STAT.replace(b"total_inactive_file 1200", b"total_inactive_file 9999"))
    readers = Readers(v1(tmp_path))
    sample = readers.read("/g")
    readers.close()
    assert sample is not None
    assert sample.working_set == 0


def test_a_group_that_is_not_there_gives_none_and_an_odd_one_what_it_has(tmp_path: Path) -> None:
    fill(tmp_path / "odd", {"memory.current": b"17\n", "cpu.stat": b"nonsense\n", "cpu.pressure": b"some\n"})
    readers = Readers(v2(tmp_path))
    assert readers.read("/absent") is None
    sample = readers.read("/odd")
    readers.close()
    assert sample is not None
    assert (sample.memory_usage, sample.working_set, sample.cpu_usage, sample.pids) == (17, 17, None, None)
    assert sample.cpu_pressure is None


def test_reading_again_sees_new_values_and_forgetting_closes_the_files(tmp_path: Path) -> None:
    fill(tmp_path / "g", V2_FILES)
    before = set(os.listdir("/proc/self/fd"))
    readers = Readers(v2(tmp_path))
    readers.read("/g")
    opened = len(set(os.listdir("/proc/self/fd")) - before)
    assert opened == files_per_group(v2(tmp_path)) == 10
    (tmp_path / "g" / "pids.current").write_bytes(b"9\n")
    sample = readers.read("/g")
    assert sample is not None
    assert sample.pids == 9
    readers.forget("/g")
    readers.forget("/g")
    assert set(os.listdir("/proc/self/fd")) == before
