"""Traffic counters of pods' interfaces, for all pods by one read.

The host's end of each veth is read from /proc/net/dev (proc(5)) and turned round: what the host received there, the
pod has sent. Of the three ways that the kernel offers (a dump of links, of link statistics, this file) it is the
only one that does not wait for the rtnl lock, which a namespace's end holds for many milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_PATH = "/proc/thread-self/net/dev"


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """What a pod's interface has received and sent since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def read_counters(links: Mapping[str, str], interface: str) -> dict[str, InterfaceCounters]:
    """Return pod id → counters; `links` maps names of host links to pod ids, pods whose link is gone are missing."""
    with open(_PATH, "rb", buffering=0) as file:
        return parse_counters(file.read(), links, interface)


def parse_counters(text: bytes, links: Mapping[str, str], interface: str) -> dict[str, InterfaceCounters]:
    """Parse the file: two lines of headings, then `name: rx bytes, packets, errors, dropped, … tx bytes, …`."""
    found = {}
    for line in text.split(b"\n")[2:]:
        name, _, rest = line.partition(b":")
        pod_id = links.get(name.strip().decode("ascii", "replace"))
        if pod_id is not None:
            values = [int(word) for word in rest.split()]
            found[pod_id] = InterfaceCounters(interface, *values[8:12], *values[0:4])
    return found
