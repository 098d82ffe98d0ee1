"""Where the daemon's processes live: whatever systemd reaches by a unit's group is the daemon, and nothing else."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from crishim.daemon import placement
from crishim.linux.cgroups import apply
from crishim.linux.cgroups.layout import USED, Hierarchy, Layout
from tests.support import machine
from tests.support.instance import Instance
from tests.support.ownership import run_id
from tests.support.world import World


def groups_of(pid: int) -> dict[str, str]:
    """Return a process's group in each hierarchy; v2's name is ""."""
    lines = machine.read(f"/proc/{pid}/cgroup").decode().splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


def children(pid: int) -> list[int]:
    return [row.pid for row in machine.processes().values() if row.parent == pid]


async def test_spawner_keepers_and_containers_are_in_no_group_of_the_daemons(own_world: World) -> None:
    instance: Instance = own_world.instance
    pod = await own_world.pod()
    container = await own_world.run(pod, "exec sleep 600")
    (spawner,) = children(instance.pid)
    keeper = next(pid for pid in children(spawner) if pod.id.encode() in machine.read(f"/proc/{pid}/cmdline"))
    program: int = instance.json("inspect", container)["info"]["pid"]
    used = {*USED, "name=systemd", ""}
    for pid in (spawner, keeper, program):
        found = groups_of(pid)
        outside = {name: group for name, group in found.items() if not group.startswith(instance.cgroup_parent)}
        assert not used & {part for name in outside for part in name.split(",")}, (pid, outside)
    assert not [group for group in groups_of(instance.pid).values() if group.startswith(instance.cgroup_parent)]


@pytest.fixture
def unit() -> Iterator[tuple[Layout, str]]:
    """Return a v2 layout whose own group is a unit's, with a process in each place of an earlier version."""
    found = [top for top in machine.cgroup_mounts() if os.path.exists(f"{top}/cgroup.controllers")]
    if not found:
        pytest.skip("lacks a mounted cgroup v2 hierarchy")
    parent = f"/crishim-test-{run_id()}-unit"
    own = f"{parent}/crishim.service"
    layout = Layout(2, (), Hierarchy(found[0], (), own))
    for group in (f"{own}/keepers", f"{own}/daemon", f"{parent}/own/keepers"):
        os.makedirs(f"{found[0]}{group}")
    try:
        yield layout, parent
    finally:
        apply.remove(layout.directories(parent), patience=10.0)


def test_what_an_earlier_version_left_in_the_unit_moves_out(unit: tuple[Layout, str]) -> None:
    layout, parent = unit
    assert layout.unified is not None
    own = layout.unified.directory(layout.unified.own)
    with subprocess.Popen(["sleep", "600"]) as keeper:
        try:
            apply.write(f"{own}/keepers", "cgroup.procs", str(keeper.pid))
            placement.leave_unit(layout, f"{parent}/own/keepers")
            assert groups_of(keeper.pid)[""] == f"{parent}/own/keepers"
            assert [entry.name for entry in os.scandir(own) if entry.is_dir()] == []
            # what systemd does at a restart: put a process into the unit's group
            with subprocess.Popen(["sleep", "600"]) as daemon:
                apply.write(own, "cgroup.procs", str(daemon.pid))
                daemon.send_signal(signal.SIGKILL)
        finally:
            keeper.kill()


def test_groups_of_no_unit_are_left_alone(unit: tuple[Layout, str]) -> None:
    layout, parent = unit
    assert layout.unified is not None
    elsewhere = Layout(2, (), Hierarchy(layout.unified.mountpoint, (), parent))
    os.makedirs(f"{layout.unified.directory(parent)}/keepers")
    placement.leave_unit(elsewhere, f"{parent}/own/keepers")
    assert os.path.isdir(f"{layout.unified.directory(parent)}/keepers")
