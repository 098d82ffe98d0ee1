"""Layouts of hosts that we do not have at hand, from their /proc texts."""

import pytest

from crishim import codec
from crishim.errors import FailedPreconditionError
from crishim.linux.cgroups.layout import Layout, parse

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_ALL = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
    "35 31 0:32 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls\n"
    "36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
)
HYBRID = V1_ALL + "37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def test_unified_host() -> None:
    layout = parse(UNIFIED, "0::/system.slice/crishim.service\n", "cpuset cpu io memory pids\n")
    assert (layout.version, layout.kind) == (2, "unified")
    assert layout.directories("/kubepods/pod1/c") == ("/sys/fs/cgroup/kubepods/pod1/c",)
    assert layout.directory("memory", "/a") == "/sys/fs/cgroup/a"
    assert layout.has("devices")
    assert layout.has("freezer")
    assert not layout.has("hugetlb")
    assert layout.unified is not None
    assert layout.unified.own == "/system.slice/crishim.service"


def test_a_v2_mount_beside_v1_is_left_alone_and_memory_comes_first_then_the_freezer() -> None:
    layout = parse(HYBRID, "2:memory:/user\n1:cpu,cpuacct:/\n0::/init\n", "hugetlb\n")
    assert (layout.version, layout.kind) == (1, "legacy")
    assert layout.unified_directory("/pod") is None
    assert layout.directories("/pod") == (
        "/sys/fs/cgroup/memory/pod",
        "/sys/fs/cgroup/freezer/pod",
        "/sys/fs/cgroup/cpu,cpuacct/pod",
    )
    assert layout.directory("cpuacct", "/pod") == layout.directory("cpu", "/pod")
    assert not layout.has("hugetlb")
    memory = layout.hierarchy("memory")
    assert memory is not None
    assert memory.own == "/user"


def test_legacy_host_has_no_unified_directory() -> None:
    layout = parse(V1_ALL, "2:memory:/\n")
    assert layout.kind == "legacy"
    assert layout.unified_directory("/pod") is None
    assert not layout.has("pids")
    assert layout.directory("pids", "/pod") is None


def test_bind_mounted_hierarchy_and_escaped_path() -> None:
    line = "33 31 0:30 /docker/abc /sys/fs/my\\040groups rw - cgroup cgroup rw,memory\n"
    layout = parse(line, "2:memory:/docker/abc\n")
    assert layout.directories("/docker/abc/pod") == ("/sys/fs/my groups/pod",)
    assert layout.directories("/docker/abc") == ("/sys/fs/my groups",)
    assert layout.directories("/docker/abcd") == ("/sys/fs/my groups/docker/abcd",)


def test_the_root_group_is_the_mountpoint() -> None:
    assert parse(UNIFIED, "0::/\n", "cpu").directories("/") == ("/sys/fs/cgroup",)


@pytest.mark.parametrize("mountinfo", ["", "30 23 0:26 / /proc rw - proc proc rw\n", UNIFIED])
def test_no_controllers_is_refused_with_the_remedy(mountinfo: str) -> None:
    with pytest.raises(FailedPreconditionError, match="mount cgroup2 on /sys/fs/cgroup"):
        parse(mountinfo, "0::/\n", "")


@pytest.mark.parametrize("text", [UNIFIED, HYBRID, V1_ALL])
def test_a_layout_survives_the_codec(text: str) -> None:
    layout = parse(text, "0::/\n", "cpu memory")
    assert codec.loads(Layout, codec.dumps(layout)) == layout


def test_hierarchies_by_which_systemd_tells_units_apart() -> None:
    layout = parse(HYBRID, "5:name=systemd:/a.service\n2:memory:/\n0::/a.service\n", "")
    assert layout.watched("/x") == ("/sys/fs/cgroup/systemd/x", "/sys/fs/cgroup/unified/x")
    assert [hierarchy.own for hierarchy in layout.watchers] == ["/a.service", "/a.service"]
    assert parse(UNIFIED, "0::/a.service\n", "cpu").watched("/x") == ()
