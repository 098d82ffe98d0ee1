"""What CNI plugins are given for a pod's request, what their results say, and what is kept of both."""

import json
from typing import Any

import pytest

from crishim.errors import InvalidArgumentError
from crishim.network.cni import result
from crishim.network.cni.model import CniError, Result, Target
from crishim.network.cni.records import Record, attachment, dumps, loads
from crishim.network.cni.wishes import EGRESS, INGRESS, IPS, MAC, arguments, capabilities
from crishim.network.model import AttachRequest
from crishim.request import DnsConfig, PortMapping, Protocol

TARGET = Target("p", "/n", "eth0", {"A": "1"}, {"mac": "x"})
BRIDGE = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "aa"},
        {"name": "veth1", "mac": "bb"},
        {"name": "eth0", "mac": "cc", "sandbox": "/n", "mtu": 1400},
        {"name": "net1", "sandbox": "/n"},
    ],
    "ips": [
        {"address": "10.1.0.9/16", "interface": 3},
        {"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 2},
        {"address": "fd00::2/64", "interface": 2},
    ],
}


def parse(document: Any) -> Result:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return result.parse("p", text, "eth0", "1.0.0")


@pytest.mark.parametrize(
    ("document", "addresses"),
    [
        (BRIDGE, ("10.1.0.2/16", "fd00::2/64")),
        ({"cniVersion": "0.2.0", "ip6": {"ip": "fd::2/64"}, "ip4": {"ip": "10.0.0.2/8"}}, ("10.0.0.2/8", "fd::2/64")),
        ({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/24"}]}, ("10.0.0.2/24",)),
        ({"ips": []}, ()),
    ],
)  # fmt: skip
def test_addresses_of_every_version(document: Any, addresses: tuple[str, ...]) -> None:
    assert parse(document).addresses == addresses


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        ({"cniVersion": "7"}, "unknown version '7'"),
        ({"ips": [{"address": "300.1.1.1/8"}]}, "the address '300.1.1.1/8'"),
        ({"ips": [{"address": 7}]}, "the address 7"),
        ({"ips": [7]}, "where an object must be"),
        ({"ips": {}, "interfaces": {"a": 1}}, "must be lists"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": 4}]}, "of interface 4 and 0 of them"),
    ],
)
def test_what_lying_plugins_send(document: Any, message: str) -> None:
    with pytest.raises(CniError, match="cni plugin p: its result") as caught:
        parse(document)
    assert message in str(caught.value)


def test_a_record_and_its_attachment() -> None:
    found = parse(BRIDGE)
    record = Record("pods", "{}", TARGET)
    assert (loads(dumps(record)), record.host_interface) == (record, "")
    record = record.finished(found)
    assert loads(dumps(record)) == record
    given = attachment(record, found)
    assert (given.ips, given.gateway, given.mtu) == (("10.1.0.2", "fd00::2"), "10.1.0.1", 1400)
    assert (given.host_interface, given.mac, given.kind) == ("veth1", "cc", "cni")
    for document in (b"{}", b"[]", b'{"network":"a","text":"b","target":{},"result":null}'):
        with pytest.raises(ValueError, match="no record of an attachment"):
            loads(document)


def test_arguments() -> None:
    found = arguments(AttachRequest("id", "web", "test", "uid"))
    assert next(iter(found)) == "IgnoreUnknown"
    assert found["K8S_POD_INFRA_CONTAINER_ID"] == "id"
    with pytest.raises(InvalidArgumentError, match=r"config\.metadata\.name: must not hold ';'"):
        arguments(AttachRequest("id", "web;K8S_POD_NAMESPACE=other"))


def test_capabilities() -> None:
    assert capabilities(AttachRequest("id"), ()) == {}
    notes = {INGRESS: "1.5M", EGRESS: "64Ki", MAC: "0a:58:00:00:00:01", IPS: "10.0.0.5/24, fd00::5"}
    ports = (PortMapping(Protocol.UDP, 53, 5353, "127.0.0.1"),)
    found = capabilities(
        AttachRequest("id", ports=ports, annotations=notes, dns=DnsConfig(), cgroup_parent="/x"), ("10.0.0.0/8",)
    )
    assert found == {
        "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {
            "ingressRate": 1_500_000,
            "ingressBurst": 0xFFFF_FFFF,
            "egressRate": 65536,
            "egressBurst": 0xFFFF_FFFF,
        },
        "dns": {"servers": [], "searches": [], "options": []},
        "ipRanges": [[{"subnet": "10.0.0.0/8"}]],
        "cgroupPath": "/x",
        "mac": "0a:58:00:00:00:01",
        "ips": ["10.0.0.5/24", "fd00::5"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (INGRESS, "fast"),
        (EGRESS, "999"),
        (EGRESS, "2P"),
        (INGRESS, "-1M"),
        (MAC, "0a:58"),
        (IPS, "10.0.0.5,"),
        (IPS, "x"),
    ],
)
def test_annotations_that_are_wrong(key: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        capabilities(AttachRequest("id", annotations={key: value}), ())
    assert str(caught.value).startswith(f"config.annotations[{key}]: must be")
