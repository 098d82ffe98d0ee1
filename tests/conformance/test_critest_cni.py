"""critest's specs of the network once more, for pods on a CNI network: bridge, host-local and portmap.

The same list says which of them pass. The plugins work on the host itself, as critest does; what they leave there for
good by design (their bridge, portmap's table) is removed here.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.conformance.critest import build, report, suite
from tests.support.abilities import need_containers, need_program
from tests.support.cni import bridge_list, need_plugins, write_list
from tests.support.instance import Instance
from tests.support.registry import Registry

_PASSING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "passing.txt")
_TABLE = "cni_hostport"
_GROUP = "Networking"


@pytest.fixture
def cni_instance(registry: Registry, test_leaks: None) -> Iterator[Instance]:
    """Return an instance whose pods are on a bridge of its own."""
    need_containers()
    suite.need_critest()
    need_program("nft", "nftables")
    with tempfile.TemporaryDirectory(prefix="ctcerts") as certs:
        directory = suite.serve(registry, build.layouts(), f"{certs}/certs.d")
        made = Instance(f'[images]\ncerts_d = ["{directory}"]\n[network]\ncni_bin_dirs = ["{need_plugins()}"]\n')
        document = bridge_list(made.bridge, made.subnet, f"{made.base}/ipam")
        document["plugins"][1]["backend"] = "nftables"  # a table of its own, where iptables would share nat's
        write_list(made.networks, document)
        before = _tables()
        try:
            made.start()
            yield made
        finally:
            made.close()
            subprocess.run(["ip", "link", "delete", made.bridge], check=False, capture_output=True)
            for family in _tables() - before:
                subprocess.run(["nft", "delete", "table", family, _TABLE], check=True)


def _tables() -> set[str]:
    """Return the families in which portmap's table is there."""
    done = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return {family for _, family, name in rows if name == _TABLE}


def test_specs_of_the_network_pass_as_listed(cni_instance: Instance, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the group and compare it with the list's part."""
    with open(_PASSING, encoding="utf-8") as file:
        listed = {name for name in report.expected(file.read()) if name.startswith(f"{_GROUP} ")}
    outcomes = suite.run(cni_instance, [f"-ginkgo.focus={_GROUP}"])
    ran = {name: outcome for name, outcome in outcomes.items() if _GROUP in name}
    with capfd.disabled():
        print(f"\nby CNI, {report.summary(ran)}")
    assert listed
    wrong = report.problems(ran, listed)
    assert not wrong, report.summary(ran) + "\n" + "\n".join(wrong)
    # no address is held for a pod that is gone
    held = [name for name in os.listdir(f"{cni_instance.base}/ipam/tests") if name[0].isdigit()]
    assert len(held) <= len(cni_instance.crictl("pods", "-q").stdout.split()), held
