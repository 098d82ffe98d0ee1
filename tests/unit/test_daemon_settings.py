"""From configuration and facts to the settings of planner and images; the network that is switched off."""

import asyncio
import json

import pytest

from crishim.config.load import OPTIONS, load, value
from crishim.daemon import planning
from crishim.daemon.disabled import DisabledNetwork
from crishim.daemon.parts import image_settings
from crishim.daemon.planning import plan_settings, pod_sysctls
from crishim.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.facts import HostFacts
from crishim.linux.rlimits import NUMBERS, Rlimit
from crishim.network.model import AttachRequest, PodNetns
from crishim.observe import NullObserver

LAYOUT = Layout(2, (), Hierarchy("/sys/fs/cgroup", ("cpu", "memory")))
SYS_RESOURCE = 1 << 24


class Observer(NullObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def degraded(self, what: str) -> None:
        self.seen.append(what)


def facts(**fields: object) -> HostFacts:
    known = {"layout": LAYOUT, "effective": SYS_RESOURCE, "negative_oom_score_adj": True, "seccomp": True}
    return HostFacts("6.1.0", "x86_64", **{**known, **fields})  # type: ignore[arg-type]


def test_a_host_that_can_everything() -> None:
    config = load('root = "/r"\ncgroup_parent = "/p"\n[runtime]\npids_limit = 7\n', "")
    observer = Observer()
    settings = plan_settings(config, facts(), observer)
    assert observer.seen == []
    assert settings.kernel == (6, 1)
    assert settings.cgroup_parent == "/p"
    assert settings.paths.layers == "/r/layers"
    assert settings.pids_limit == 7
    assert settings.oom_score_floor == -1000
    assert settings.seccomp is not None
    assert Rlimit(NUMBERS["NOFILE"], 1024, 524288) in settings.rlimits


def test_sysctls_of_pods() -> None:
    observer = Observer()
    given = ["net.ipv4.ping_group_range=0 7", "net/ipv6/conf/default/accept_ra=1", "net.ipv4.no_such_thing=1"]
    found = plan_settings(load("", ""), facts(), observer).sysctls
    assert found["net/ipv4/ip_unprivileged_port_start"] == "0"
    assert found["net/ipv4/ping_group_range"] == "0 2147483647"
    assert found["net/ipv4/conf/all/accept_redirects"] == "0"
    assert found.get("net/ipv6/conf/default/accept_ra", "0") == "0"  # a kernel without IPv6 has none
    assert observer.seen == []
    found = pod_sysctls(given, observer)
    assert found["net/ipv4/ping_group_range"] == "0 7"
    assert found.get("net/ipv6/conf/default/accept_ra", "1") == "1"
    assert "net/ipv4/no_such_thing" not in found
    assert "net/ipv4/ip_unprivileged_port_start" not in found
    assert observer.seen == ["pod_sysctls"]


def test_groups_to_ping_are_left_out_where_not_all_groups_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_maps_all_groups", lambda: False)  # a daemon within a user namespace
    observer = Observer()
    assert "net/ipv4/ping_group_range" not in pod_sysctls(["net.ipv4.ping_group_range=0 7"], observer)
    assert observer.seen == ["pod_sysctls"]


def test_what_the_host_lacks_becomes_the_nearest_value_and_is_told() -> None:
    observer = Observer()
    poor = facts(effective=0, negative_oom_score_adj=False, seccomp=False, hard_rlimits=((NUMBERS["NOFILE"], 4096),))
    settings = plan_settings(load("", ""), poor, observer)
    assert observer.seen == ["rlimits", "oom_score_adj"]
    assert Rlimit(NUMBERS["NOFILE"], 1024, 4096) in settings.rlimits
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        assert settings.oom_score_floor == int(file.read())
    assert settings.seccomp is None


def test_no_control_groups() -> None:
    with pytest.raises(FailedPreconditionError, match="no control groups"):
        plan_settings(load("", ""), facts(layout=None), NullObserver())


def test_a_profile_of_ones_own(tmp_path: object) -> None:
    path = f"{tmp_path}/p.json"
    config = load(f'[runtime]\nseccomp_profile = "{path}"\n', "")
    with pytest.raises(NotFoundError, match=r"p\.json"):
        plan_settings(config, facts(), NullObserver())
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"defaultAction": 3}')
    with pytest.raises(InvalidArgumentError, match="defaultAction"):
        plan_settings(config, facts(), NullObserver())
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"defaultAction": "SCMP_ACT_ALLOW"}, file)
    assert plan_settings(config, facts(), NullObserver()).seccomp is not None


def test_every_option_of_images_reaches_them() -> None:
    text = "[images]\npath = '/i'\npinned = ['pause:3.10']\ncerts_d = ['/c']\nparallel_pulls = 9\nparallel_layers = 8\n"
    config = load(f"{text}stall_seconds = 7\nmax_layer_bytes = 6\nmax_ratio = 5\n", "")
    settings = image_settings(config)
    assert config.paths.layers == "/i/layers"
    for path in (path for path in OPTIONS if path.startswith("images.") and path != "images.path"):
        assert getattr(settings, path.removeprefix("images.")) == value(config, path)


def test_a_network_that_is_switched_off() -> None:
    async def work() -> None:
        network = DisabledNetwork()
        await network.start()
        assert network.ready()[:2] == (False, "NetworkDisabled")
        assert await network.reconcile(frozenset()) == 0
        assert network.interface_stats() == {}
        await network.detach("p", None)
        with pytest.raises(FailedPreconditionError, match=r"network\.enabled = false"):
            await network.attach(PodNetns("p", "/x", -1, -1), AttachRequest("p"))
        await network.shutdown(remove=True)

    asyncio.run(work())
