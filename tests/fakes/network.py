"""A network without a kernel: who is attached, and what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.observe import Observer
from tests.fakes.faults import Faults


@dataclass(frozen=True)
class FakeCounters:
    name: str = "eth0"
    rx_bytes: int = 1
    rx_packets: int = 5
    rx_errors: int = 2
    rx_dropped: int = 6
    tx_bytes: int = 3
    tx_packets: int = 7
    tx_errors: int = 4
    tx_dropped: int = 8


class FakeNetwork:
    """Implements `pods.ports.Network`."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.attached: dict[str, AttachRequest] = {}
        self.subnets: tuple[str, ...] = ()
        self._next = 2

    async def start(self) -> None:
        pass

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        await self.faults.wait("network.attach")
        self.attached[netns.pod_id] = request
        self._next += 1
        return Attachment(ips=(f"10.0.0.{self._next}",), host_interface=f"fake{self._next}")

    async def detach(self, pod_id: str, attachment: Attachment | None) -> None:
        await self.faults.wait("network.detach")
        self.attached.pop(pod_id, None)

    async def reconcile(self, live: frozenset[str]) -> int:
        gone = self.attached.keys() - live
        for pod_id in gone:
            del self.attached[pod_id]
        return len(gone)

    def observe(self, observer: Observer) -> None:
        pass

    def addresses(self) -> dict[tuple[str, str], int]:
        return {("ipv4", "used"): len(self.attached)}

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        await self.faults.wait("network.use_pod_cidr")
        self.subnets = tuple(subnets)

    async def refresh(self) -> None:
        pass

    def ready(self) -> tuple[bool, str, str]:
        return (True, "", "")

    async def shutdown(self, *, remove: bool) -> None:
        pass

    def interface_stats(self) -> dict[str, FakeCounters]:
        return {pod_id: FakeCounters() for pod_id in self.attached}
