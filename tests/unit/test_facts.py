"""Host facts: found on this machine, and as plain data."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crishim import codec
from crishim.linux import calls, facts, probes
from crishim.linux.facts import HostFacts, parse_version
from tests.support.surroundings import ABSENT


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc-v769", (6, 18)), ("5.14.0", (5, 14)), ("6.1-rc1", (6, 1)), ("", (0, 0)), ("x", (0, 0))],
)
def test_version(release: str, version: tuple[int, int]) -> None:
    assert parse_version(release) == version


def state_of_thread() -> tuple[set[str], str, str]:
    texts = [Path(f"/proc/thread-self/{name}").read_text(encoding="utf-8") for name in ("mountinfo", "oom_score_adj")]
    return set(os.listdir("/proc/thread-self/fd")), texts[0], texts[1]


def probe_in_own_mounts() -> tuple[HostFacts, tuple[set[str], str, str], tuple[set[str], str, str]]:
    """Probe where no other program of the machine mounts anything meanwhile."""
    calls.unshare(calls.CLONE_NEWNS)
    calls.mount("none", "/", "", calls.MS_REC | calls.MS_PRIVATE)
    before = state_of_thread()
    return facts.probe(), before, state_of_thread()


def test_probing_finds_this_host_and_leaves_nothing() -> None:
    with ThreadPoolExecutor(1) as thread:
        _, before, after = thread.submit(probe_in_own_mounts).result()
    assert after == before
    found = facts.probe()
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
    assert probes.text(ABSENT) == ""
    assert probes.number(ABSENT, 7) == 7
