"""Host facts: found on this machine, and as plain data."""

import os
import platform
from pathlib import Path

import pytest

from crishim import codec
from crishim.linux import facts, probes
from crishim.linux.facts import HostFacts, parse_version


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc-v769", (6, 18)), ("5.14.0", (5, 14)), ("6.1-rc1", (6, 1)), ("", (0, 0)), ("x", (0, 0))],
)
def test_version(release: str, version: tuple[int, int]) -> None:
    assert parse_version(release) == version


def test_probing_finds_this_host_and_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    score = Path("/proc/self/oom_score_adj").read_text(encoding="utf-8")
    found = facts.probe()
    assert (set(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text(encoding="utf-8")) == before
    assert Path("/proc/self/oom_score_adj").read_text(encoding="utf-8") == score
    assert found.kernel == platform.release()
    assert found.machine == platform.machine()
    assert found.memory_total > 1 << 20
    assert {"mnt", "net", "pid", "user"} <= set(found.namespaces)
    assert found.cpus >= 1
    assert len(found.hard_rlimits) == 16


def test_facts_survive_the_codec() -> None:
    found = facts.probe()
    assert codec.loads(HostFacts, codec.dumps(found)) == found


def test_probing_twice_gives_the_same() -> None:
    assert facts.probe() == facts.probe()


@pytest.mark.parametrize(("kilobytes", "size"), [(64, "64KB"), (2048, "2MB"), (32768, "32MB"), (1 << 20, "1GB")])
def test_huge_page_sizes_have_the_controllers_form(kilobytes: int, size: str) -> None:
    assert probes.size(kilobytes) == size


def test_what_cannot_be_found_out_counts_as_absent() -> None:
    def fails() -> bool:
        raise OSError(1, "no")

    assert probes.attempt(fails, False) is False
    assert probes.text("/does/not/exist") == ""
    assert probes.number("/does/not/exist", 7) == 7
