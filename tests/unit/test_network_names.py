"""hosts, hostname and resolv.conf; and the counters' text."""

from dataclasses import dataclass

import pytest

from crishim.errors import InvalidArgumentError
from crishim.network.counters import InterfaceCounters, parse_counters
from crishim.network.names import check_hostname, hostname_file, hosts_file, resolv_conf


@dataclass(frozen=True)
class Dns:
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


HOST = "nameserver 192.0.2.53\n"


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        (None, HOST),
        (Dns(), ""),
        (Dns(servers=("10.0.0.10",)), "nameserver 10.0.0.10\n"),
        (
            Dns(("10.0.0.10", "fd00::a"), ("a.svc", "svc"), ("ndots:5", "edns0")),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_none_empty_and_full_are_three_things(dns: Dns | None, expected: str) -> None:
    assert resolv_conf(dns, HOST) == expected


@pytest.mark.parametrize(
    ("dns", "field"),
    [
        (Dns(servers=("10.0.0.1\nnameserver 6.6.6.6",)), "servers[0]"),
        (Dns(searches=("ok", "two words")), "searches[1]"),
        (Dns(options=("",)), "options[0]"),
    ],
)
def test_a_value_cannot_start_a_line(dns: Dns, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        resolv_conf(dns, HOST)
    assert caught.value.field == f"config.dns_config.{field}"


def test_hosts_names_the_pod_at_all_its_addresses() -> None:
    text = hosts_file("web-0.db.svc", ("10.9.0.2", "fd00::2"))
    assert text.startswith("127.0.0.1\tlocalhost\n::1\t")
    assert text.endswith("10.9.0.2\tweb-0.db.svc web-0\nfd00::2\tweb-0.db.svc web-0\n")
    assert hosts_file("web", ("10.9.0.2",)).endswith("10.9.0.2\tweb\n")
    assert "10.9.0.2" not in hosts_file("", ("10.9.0.2",))
    assert hostname_file("web") == "web\n"


@pytest.mark.parametrize("good", ["", "a", "web-0", "Web.svc.local", "x" * 64])
def test_good_hostnames(good: str) -> None:
    check_hostname(good)


@pytest.mark.parametrize("bad", ["-a", "a-", "a b", "a\nb", "x" * 65, "über", "a_b", "."])
def test_bad_hostnames(bad: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^config\.hostname: "):
        check_hostname(bad)


DEV = b"""Inter-|   Receive              |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     120       2    0    0    0     0          0         0      120       2    0    0 0 0 0 0
v1234567890abcd: 1500 9 3 0 0 0 0 0 700 4 5 0 0 0 0 0
veth9:1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
"""


def test_counters_are_turned_round_and_others_left_out() -> None:
    assert parse_counters(DEV, {"v1234567890abcd": "pod", "v0": "gone"}, "eth0") == {
        "pod": InterfaceCounters("eth0", rx_bytes=700, rx_errors=5, tx_bytes=1500, tx_errors=3)
    }
