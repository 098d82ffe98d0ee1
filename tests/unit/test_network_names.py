"""hosts, hostname and resolv.conf; and the counters' text."""

import pytest

from crishim.network.counters import InterfaceCounters, parse_counters
from crishim.network.names import hostname_file, hosts_file, resolv_conf
from crishim.request import DnsConfig

HOST = "nameserver 192.0.2.53\n"


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        (None, HOST),
        (DnsConfig(), ""),
        (DnsConfig(servers=("10.0.0.10",)), "nameserver 10.0.0.10\n"),
        (
            DnsConfig(("10.0.0.10", "fd00::a"), ("a.svc", "svc"), ("ndots:5", "edns0")),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_none_empty_and_full_are_three_things(dns: DnsConfig | None, expected: str) -> None:
    assert resolv_conf(dns, HOST) == expected


def test_hosts_names_the_pod_at_all_its_addresses() -> None:
    text = hosts_file("web-0.db.svc", ("10.9.0.2", "fd00::2"))
    assert text.startswith("127.0.0.1\tlocalhost\n::1\t")
    assert text.endswith("10.9.0.2\tweb-0.db.svc web-0\nfd00::2\tweb-0.db.svc web-0\n")
    assert hosts_file("web", ("10.9.0.2",)).endswith("10.9.0.2\tweb\n")
    assert "10.9.0.2" not in hosts_file("", ("10.9.0.2",))
    assert hostname_file("web") == "web\n"


DEV = b"""Inter-|   Receive              |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     120       2    0    0    0     0          0         0      120       2    0    0 0 0 0 0
v1234567890abcd: 1500 9 3 0 0 0 0 0 700 4 5 0 0 0 0 0
veth9:1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
"""


def test_counters_are_turned_round_and_others_left_out() -> None:
    assert parse_counters(DEV, {"v1234567890abcd": "pod", "v0": "gone"}, "eth0") == {
        "pod": InterfaceCounters("eth0", 700, 4, 5, 0, 1500, 9, 3, 0)
    }
