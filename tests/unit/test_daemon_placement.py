"""Which control groups the daemon's processes get; the moves themselves are in the integration tests."""

from crishim.daemon.placement import keepers_group
from crishim.linux.cgroups.layout import Hierarchy, Layout


def test_the_keepers_lie_below_the_instances_own_parent() -> None:
    assert keepers_group("/crishim") == "/crishim/keepers"


def test_where_systemd_counts_processes_beside_the_controllers() -> None:
    systemd = Hierarchy("/sys/fs/cgroup/systemd", (), "/system.slice/crishim.service")
    layout = Layout(1, (Hierarchy("/sys/fs/cgroup/memory", ("memory",)),), None, (systemd,))
    assert layout.directories("/crishim/keepers") == ("/sys/fs/cgroup/memory/crishim/keepers",)
    assert layout.watched("/crishim/keepers") == ("/sys/fs/cgroup/systemd/crishim/keepers",)
