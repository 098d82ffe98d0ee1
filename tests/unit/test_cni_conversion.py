"""A plugin's result in another version than the list's is converted, and one of no version refused."""

import json
from typing import Any

import pytest

from crishim.network.cni import result
from crishim.network.cni.model import CniError, Result

NEW = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "veth1", "mac": "02:00:00:00:00:01", "mtu": 1500},
        {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1500},
    ],
    "ips": [
        {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 1},
        {"address": "fd00::2/64", "interface": 1},
    ],
    "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}, {"dst": "::/0", "gw": "fd00::1"}],
    "dns": {"nameservers": ["10.9.0.1"]},
}
FLAT = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.9.0.2/24", "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": {"nameservers": ["10.9.0.1"]},
}


def parse(document: Any, version: str) -> Result:
    return result.parse("stub", json.dumps(document).encode(), "eth0", version)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("given", [NEW, FLAT])
def test_addresses_are_the_same_in_every_version(given: dict[str, Any], version: str) -> None:
    found = parse(given, version)
    assert found.addresses == ("10.9.0.2/24", "fd00::2/64")
    assert found.document["cniVersion"] == version
    assert parse(found.document, version).addresses == found.addresses
    assert parse(found.document, "1.1.0").addresses == found.addresses


def test_a_new_result_in_an_old_version() -> None:
    assert dict(parse(NEW, "0.2.0").document) == FLAT


def test_an_address_has_its_family_before_1_0_0() -> None:
    ips = parse(NEW, "0.4.0").document["ips"]
    assert [entry["version"] for entry in ips] == ["4", "6"]
    assert all(
        "version" not in entry for entry in parse({**NEW, "cniVersion": "0.4.0", "ips": ips}, "1.0.0").document["ips"]
    )


def test_what_a_version_cannot_say_is_left_out() -> None:
    document = parse(NEW, "1.0.0").document
    assert document["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}]
    assert all("mtu" not in entry for entry in document["interfaces"])


def test_a_result_without_a_version_has_the_lists() -> None:
    assert parse({"ips": [{"address": "10.9.0.2/24"}]}, "1.0.0").document["cniVersion"] == "1.0.0"


@pytest.mark.parametrize("version", ["9.9.9", 1, ["1.0.0"]])
def test_an_unknown_version_is_refused(version: Any) -> None:
    with pytest.raises(CniError, match="unknown version"):
        parse({"cniVersion": version, "ips": []}, "1.0.0")


@pytest.mark.parametrize(
    "change",
    [
        {"routes": [1]},
        {"routes": [{"dst": 1}]},
        {"routes": 7},
        {"interfaces": [None, {"name": "eth0", "sandbox": "x"}]},
    ],
)
def test_a_result_that_cannot_be_converted_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CniError, match="stub"):
        parse({**NEW, **change}, "0.2.0" if "routes" in change else "1.0.0")
