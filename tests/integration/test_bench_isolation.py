"""What a bench's peers write where no configuration reaches: it must not land on the host."""

import os
import subprocess
import sys
from pathlib import Path

from scripts.benchlib import mounts
from tests.support.abilities import need_containers

WRITE = """
import os, signal, sys
from scripts.benchlib import mounts
places = sys.argv[2:]
mounts.PEERS_PLACES = tuple(places)
mounts.isolate()
for place in places:
    assert os.listdir(place) == [], place
    open(f"{place}/left", "w").close()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def isolated(end: str, *places: Path) -> int:
    command = [sys.executable, "-c", WRITE, end, *map(str, places)]
    return subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode


def test_what_peers_write_never_reaches_the_host(tmp_path: Path) -> None:
    need_containers()
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    (there / "of-the-host").write_text("kept")
    assert isolated("ended", there, missing) == 0
    assert os.listdir(there) == ["of-the-host"]
    assert not missing.exists()


def test_nor_does_it_when_the_bench_is_killed(tmp_path: Path) -> None:
    need_containers()
    there = tmp_path / "there"
    there.mkdir()
    assert isolated("killed", there) == -9
    assert os.listdir(there) == []


def test_the_places_are_those_that_the_peers_and_cni_use() -> None:
    places = {"/run/netns", "/run/containerd", "/run/crio", "/var/lib/cni", "/var/lib/containers"}
    assert places <= set(mounts.PEERS_PLACES)
