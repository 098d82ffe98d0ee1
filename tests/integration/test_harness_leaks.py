"""The leak check itself: each kind of thing that is left behind is found, named and removed."""

import os
import subprocess
import sys

import pytest

from tests.support import leaks, machine
from tests.support.abilities import need_containers, need_program
from tests.support.ownership import SCOPE, run_id
from tests.support.registry import Registry


@pytest.fixture(autouse=True)
def _able() -> None:
    need_containers()


def found_since(before: leaks.Snapshot, kind: str) -> list[leaks.Leak]:
    """Return the leaks of one kind, and remove everything that was found."""
    found = leaks.leaks_since(before)
    leaks.scrub(found)
    return [leak for leak in found if leak.kind == kind]


def test_nothing_is_found_where_nothing_was_left() -> None:
    assert leaks.leaks_since(leaks.snapshot()) == []


def test_a_mount_below_the_runs_directory_is_found_and_removed(tmp_path: os.PathLike[str]) -> None:
    before = leaks.snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "left", str(tmp_path)], check=True)
    assert [leak.name for leak in found_since(before, "mount")] == [f"{tmp_path} #1"]
    assert not os.path.ismount(tmp_path)


def test_a_cgroup_in_every_hierarchy_is_found_and_removed() -> None:
    before = leaks.snapshot()
    name = f"crishim-test-{run_id()}-left"
    made = [os.path.join(top, name) for top in machine.cgroup_mounts()]
    for path in made:
        os.mkdir(path)
    assert sorted(leak.name for leak in found_since(before, "cgroup")) == sorted(made)
    assert not any(os.path.exists(path) for path in made)


def test_a_process_that_outlives_its_parent_is_found_with_its_namespace() -> None:
    before = leaks.snapshot()
    script = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    print(os.getpid(), flush=True)\n    time.sleep(600)"
    )
    output = subprocess.Popen(["unshare", "-n", sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert output.stdout is not None
    pid = int(output.stdout.readline())
    output.stdout.close()
    output.wait()
    found = leaks.leaks_since(before)
    leaks.scrub(found)
    assert [leak.name.partition("@")[0] for leak in found if leak.kind == "process"] == [str(pid)]
    assert [leak.detail.split(" (")[0] for leak in found if leak.kind == "netns"] == [f"held by pid {pid}"]


def test_a_link_and_a_table_with_the_runs_name_are_found_and_removed() -> None:
    need_program("nft", "nftables")
    word = f"ct{run_id()}x"
    SCOPE.words.add(word)
    before = leaks.snapshot()
    subprocess.run(["ip", "link", "add", word, "type", "bridge"], check=True)
    subprocess.run(["nft", "add", "table", "inet", word], check=True)
    found = leaks.leaks_since(before, grace=0)
    leaks.scrub(found)
    assert {leak.kind for leak in found} == {"link", "nft table"}
    assert word not in machine.links()
    assert f"inet {word}" not in machine.tables()


def test_a_descriptor_of_the_test_itself_is_found() -> None:
    before = leaks.snapshot()
    read, write = os.pipe()
    names = [leak.name.partition(" ")[0] for leak in found_since(before, "fd")]
    os.close(read)
    os.close(write)
    assert names == sorted([str(read), str(write)])


def test_the_registry_serves_what_was_pushed(registry: Registry, busybox_reference: str) -> None:
    command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{busybox_reference}"]
    assert b'"IMAGE_VARIABLE=from the image"' in subprocess.run(command, check=True, capture_output=True).stdout
    assert busybox_reference.startswith(registry.host)
