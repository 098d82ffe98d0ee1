"""`crishim check` as root: it unpacks a layer and runs a container, says which call failed, and leaves nothing."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.abilities import need_containers, need_program
from tests.support.instance import python
from tests.support.ownership import SCOPE, run_id

pytestmark = pytest.mark.shared_mounts


@pytest.fixture
def place(tmp_path: Path) -> Path:
    need_containers()
    SCOPE.directories.add(str(tmp_path))
    return tmp_path


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """Return a mount point; what is mounted there goes with the test."""
    point = place / "mounted"
    point.mkdir()
    yield point
    if os.path.ismount(point):
        subprocess.run(["umount", point], check=True)


def check(*words: str, place: Path, without: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run the command for an instance that is not there yet."""
    parent = f"/crishim-test-{run_id()}-{secrets.token_hex(3)}"
    command = [python(), "-m", "crishim", "check", "--state", f"{place}/state", "--cgroup-parent", parent, *words]
    return subprocess.run([*without, *command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def findings(*words: str, place: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(check("--json", *words, place=place).stdout)}


def test_a_layer_and_a_container_are_tried_and_nothing_is_left(place: Path) -> None:
    found = findings("--root", f"{place}/root/of/it", place=place)
    assert (found["unpacking"]["level"], found["unpacking"]["detail"]) == ("ok", "a layer was unpacked")
    assert (found["container"]["level"], found["container"]["detail"]) == ("ok", "a container was run")
    assert list(place.iterdir()) == []


def test_the_report_ends_with_a_line(place: Path) -> None:
    done = check("--root", f"{place}/root", place=place)
    assert done.stdout.endswith("\nthis host can serve\n"), done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("capability", "name", "detail"),
    [
        ("mknod", "unpacking", ": capset: Operation not permitted"),  # a layer may have nodes
        ("setpcap", "container", "a container cannot be run: capabilities: prctl 24: operation not permitted"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_the_call_and_the_reason(
    place: Path, capability: str, name: str, detail: str
) -> None:
    need_program("setpriv", "util-linux")
    without = ("setpriv", f"--bounding-set=-{capability}")
    done = check("--json", "--root", f"{place}/root", place=place, without=without)
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert (found[name]["level"], found[name]["remedy"] != "") == ("error", True)
    assert found[name]["detail"].endswith(detail)
    assert ("container" in found) == (name == "container")
    assert list(place.iterdir()) == []


def test_the_remedy_for_the_state_directory_makes_one_that_serves(place: Path, mounted: Path) -> None:
    remedy = findings("--root", f"{place}/root", place=place)["state directory"]["remedy"]
    command = remedy[remedy.index("(") + 1 : remedy.index(")")]
    subprocess.run(command.replace("DIRECTORY", str(mounted)).split(), check=True)
    assert os.stat(mounted).st_mode & 0o022 == 0
