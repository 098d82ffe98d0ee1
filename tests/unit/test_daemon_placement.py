"""Which control groups the daemon and the keepers get."""

from crishim.daemon.placement import keepers_group, unit_group
from crishim.linux.cgroups.layout import Hierarchy, Layout

SYSTEMD = {"INVOCATION_ID": "x"}


def layout(own: str, version: int = 2) -> Layout:
    return Layout(version, (), Hierarchy("/sys/fs/cgroup", ("cpu", "memory"), own))


def test_without_systemd_the_keepers_lie_below_the_parent() -> None:
    assert keepers_group(layout("/user.slice/session-1.scope"), "/crishim", {}) == "/crishim/keepers"
    assert keepers_group(layout("/system.slice/ssh.service"), "/crishim", {}) == "/crishim/keepers"
    assert keepers_group(layout("/user.slice/session-1.scope"), "/two", SYSTEMD) == "/two/keepers"
    assert keepers_group(Layout(1), "/crishim", SYSTEMD) == "/crishim/keepers"


def test_under_systemd_they_are_a_leaf_of_the_unit() -> None:
    unit = "/system.slice/crishim.service"
    assert keepers_group(layout(unit), "/crishim", SYSTEMD) == f"{unit}/keepers"
    assert keepers_group(layout(f"{unit}/daemon"), "/crishim", SYSTEMD) == f"{unit}/keepers"
    assert unit_group(layout(f"{unit}/other"), SYSTEMD) == ""
