"""The findings of `crishim check` for good and bad hosts."""

from dataclasses import replace
from pathlib import Path

import pytest

from crishim.config.model import Config
from crishim.daemon.check import ERROR, OK, WARN, Finding, cannot_serve, findings, pods_for_descriptors
from crishim.daemon.surroundings import Surroundings, Trial, look
from crishim.linux import capabilities
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.facts import HostFacts, probe
from crishim.network.host import Barrier, Lack

V2 = Layout(2, (), Hierarchy("/sys/fs/cgroup", ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")))
GOOD = HostFacts(
    kernel="6.18.0",
    machine="x86_64",
    layout=V2,
    bounding=capabilities.ALL,
    effective=capabilities.ALL,
    seccomp=True,
    overlay=True,
    overlay_lowerdir_plus=True,
    memfd_exec=True,
    swap_accounting=True,
    hard_rlimits=((7, 65536),),
    negative_oom_score_adj=True,
    hugepage_sizes=("2MB",),
    ipv6=True,
    nftables=True,
    pressure=True,
    namespaces=("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"),
)
AROUND = Surroundings("ext4", 100 << 30, "tmpfs")
CONFIG = Config()


def one(name: str, facts: HostFacts = GOOD, around: Surroundings = AROUND, config: Config = CONFIG) -> Finding:
    (found,) = [finding for finding in findings(facts, config, around) if finding.name == name]
    return found


def test_a_good_host_has_nothing_to_do() -> None:
    assert [finding for finding in findings(GOOD, CONFIG, AROUND) if not finding.ok] == []


@pytest.mark.parametrize(
    ("name", "level", "facts"),
    [
        ("kernel", ERROR, replace(GOOD, kernel="5.10.0-9-amd64")),
        ("machine", ERROR, replace(GOOD, machine="riscv64")),
        ("privileges", ERROR, replace(GOOD, effective=0)),
        ("namespaces", ERROR, replace(GOOD, namespaces=("mnt",))),
        ("cgroups", ERROR, replace(GOOD, layout=None)),
        ("devices", ERROR, replace(GOOD, layout=Layout(1, (Hierarchy("/m", ("memory",)),)))),
        ("controllers", WARN, replace(GOOD, layout=Layout(1, (Hierarchy("/m", ("memory",)),)))),
        ("swap limits", WARN, replace(GOOD, swap_accounting=False)),
        ("huge pages", WARN, replace(GOOD, layout=Layout(2, (), Hierarchy("/c", ("cpu",))))),
        ("pressure", WARN, replace(GOOD, pressure=False)),
        ("overlay", ERROR, replace(GOOD, overlay=False)),
        ("deep images", WARN, replace(GOOD, overlay_lowerdir_plus=False)),
        ("descriptors", WARN, replace(GOOD, hard_rlimits=((7, 1024),))),
        ("resource limits", WARN, replace(GOOD, effective=GOOD.effective & ~(1 << 24))),
        ("oom_score_adj", WARN, replace(GOOD, negative_oom_score_adj=False)),
        ("process ids", WARN, replace(GOOD, pid_max=4096)),
        ("interpreter", WARN, replace(GOOD, memfd_exec=False)),
        ("nftables", ERROR, replace(GOOD, nftables=False)),
        ("seccomp", ERROR, replace(GOOD, seccomp=False)),
        ("capabilities", WARN, replace(GOOD, bounding=capabilities.ALL & ~(1 << 24))),
        ("apparmor", WARN, replace(GOOD, lsms=("capability", "apparmor"))),
    ],
)
def test_what_a_host_lacks(name: str, level: str, facts: HostFacts) -> None:
    found = one(name, facts)
    assert found.level == level
    assert found.remedy
    assert found.detail
    assert cannot_serve([found]) == (level == ERROR)


@pytest.mark.parametrize(
    ("name", "level", "around"),
    [
        ("root directory", ERROR, replace(AROUND, root_fstype="overlay")),
        ("root directory", ERROR, replace(AROUND, root_fstype="fuse.sshfs")),
        ("disk", WARN, replace(AROUND, root_free=1 << 20)),
        ("state directory", WARN, replace(AROUND, state_fstype="ext4")),
        ("forwarding", WARN, replace(AROUND, barriers=(Barrier("chain ip filter FORWARD", "iptables …"),))),
        ("forwarding", WARN, replace(AROUND, barriers=None)),
        ("veth", ERROR, replace(AROUND, lacks=(Lack("veth", "create link: not supported", "modprobe veth"),))),
        ("own", WARN, replace(AROUND, lacks=(Lack("own", "create chain: no such file", "use …", optional=True),))),
        ("network needs", WARN, replace(AROUND, lacks=None)),
        ("unpacking", ERROR, replace(AROUND, trial=Trial("pivot_root .: Invalid argument"))),
        ("container", ERROR, replace(AROUND, trial=Trial("", "exec /exit: permission denied"))),
    ],
)
def test_what_lies_around(name: str, level: str, around: Surroundings) -> None:
    found = one(name, around=around)
    assert (found.level, bool(found.remedy)) == (level, True)


def test_an_image_path_is_looked_at_if_there_is_one(tmp_path: Path) -> None:
    config = replace(CONFIG, images=replace(CONFIG.images, path=f"{tmp_path}/not/yet"))
    seen = look(replace(config, network=replace(config.network, enabled=False)))
    assert (seen.images_fstype != "", (seen.images_free or 0) > 0) == (True, True)
    around = replace(AROUND, images_fstype="nfs4", images_free=1 << 20)
    levels = {found.name: found.level for found in findings(GOOD, config, around)}
    assert (levels["image path"], levels["image disk"]) == (ERROR, WARN)
    assert not {"image path", "image disk"} & {found.name for found in findings(GOOD, CONFIG, AROUND)}
    assert look(replace(CONFIG, network=replace(CONFIG.network, enabled=False))).images_free is None


def test_names_stand_in_the_text() -> None:
    assert "SYS_ADMIN" in one("privileges", replace(GOOD, effective=0)).detail
    assert "SYS_RESOURCE" in one("capabilities", replace(GOOD, bounding=capabilities.ALL & ~(1 << 24))).detail
    lowered = one("resource limits", replace(GOOD, effective=GOOD.effective & ~(1 << 24))).detail
    assert "RLIMIT_NOFILE" in lowered
    assert "RLIMIT_STACK" not in lowered


def test_without_a_network_nftables_does_not_matter() -> None:
    config = replace(CONFIG, network=replace(CONFIG.network, enabled=False))
    found = findings(replace(GOOD, nftables=False), config, AROUND)
    assert not cannot_serve(found)
    assert not any(finding.name == "nftables" for finding in found)


def test_ipv6_matters_only_where_it_is_configured() -> None:
    facts = replace(GOOD, ipv6=False)
    assert one("ipv6", facts).level == OK
    dual = replace(CONFIG, network=replace(CONFIG.network, subnets=("10.119.0.0/16", "fd00::/64")))
    assert one("ipv6", facts, config=dual).level == ERROR


def test_descriptors_per_pod() -> None:
    assert pods_for_descriptors(65536, GOOD) > 1000
    assert pods_for_descriptors(100, GOOD) == 0


def test_this_host() -> None:
    found = findings(probe(), CONFIG, look(CONFIG))
    assert len({finding.name for finding in found}) == len(found)
    assert all(finding.remedy for finding in found if not finding.ok)
