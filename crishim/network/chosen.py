"""The network of a pod: CNI where the directory holds a configuration, the embedded network where it does not.

Decided for each pod when it is attached, and kept: a pod of one network is taken off that one, whatever the directory
holds by then. What remembers the choice is CNI's record of the attachment. Invariant: a host with CNI never gets the
embedded network's bridge and table, unless pods of it live.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog

from crishim.errors import CrishimError
from crishim.network.cni.model import NetworkList
from crishim.network.cni.network import CniNetwork
from crishim.network.cni.records import KIND
from crishim.network.counters import InterfaceCounters
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.observe import Observer


class ChosenNetwork:
    """Implements `network.model.NetworkApi` by two others; all methods are for one event loop.

    Args:
        current: as for CniNetwork.
        cni: takes the pods while `current` returns a network.
        embedded: takes the others.
    """

    def __init__(self, current: Callable[[], NetworkList | None], cni: CniNetwork, embedded: EmbeddedNetwork) -> None:
        self._current = current
        self._cni = cni
        self._embedded = embedded
        self._log = structlog.get_logger("crishim.network")

    def _is_cni(self) -> bool:
        """Tell whether new pods go to CNI; a configuration that is there but broken is one."""
        try:
            return self._current() is not None
        except CrishimError:
            return True

    async def start(self) -> None:
        """Ask the plugins whether they are ready, or make bridge and table, as far as either is needed; idempotent."""
        is_cni = self._is_cni()
        if is_cni:
            await self._cni.refresh()
        if not is_cni or self._embedded.used():
            await self._embedded.start()

    def observe(self, observer: Observer) -> None:
        """Tell this observer of attaches, detaches and failures from now on."""
        self._cni.observe(observer)
        self._embedded.observe(observer)

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        """Attach the pod to the network that is configured now; see `CniNetwork.attach`, `EmbeddedNetwork.attach`."""
        chosen = self._cni if self._is_cni() else self._embedded
        return await chosen.attach(netns, request)

    async def detach(self, pod_id: str, attachment: Attachment | None) -> None:
        """Take the pod off the network that it is on; idempotent."""
        if self._cni.holds(pod_id):
            await self._cni.detach(pod_id)
        elif attachment is None or attachment.kind != KIND:
            await self._embedded.detach(pod_id, attachment)

    async def reconcile(self, live: frozenset[str]) -> int:
        """Remove what is no pod's of `live`, from both; return how many things went."""
        removed = await self._cni.reconcile(live)
        if self._embedded.used():
            removed += await self._embedded.reconcile(frozenset(pod for pod in live if not self._cni.holds(pod)))
        return removed

    async def refresh(self) -> None:
        """Wait a moment for what `ready` will say, if the configuration changed since it last said something."""
        if self._is_cni():
            await self._cni.refresh()
        elif not self._embedded.used():  # the configuration went away since the start
            await self._embedded.start()

    def ready(self) -> tuple[bool, str, str]:
        """Return (ready, reason, message) of the network that new pods get."""
        if self._is_cni():
            return self._cni.ready()
        return self._embedded.ready()

    def addresses(self) -> Mapping[tuple[str, str], int]:
        """Return the embedded network's addresses, if it is in use: CNI's are its plugins' affair."""
        return self._embedded.addresses() if self._embedded.used() or not self._is_cni() else {}

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        """Give both kubelet's pod CIDR; what the embedded network has against it counts only where pods get it."""
        try:
            await self._embedded.use_pod_cidr(subnets)
        except CrishimError as error:
            if not self._is_cni():
                raise
            self._log.info("network: the embedded network does not take the pod CIDR", reason=str(error))
        await self._cni.use_pod_cidr(subnets)

    def interface_stats(self) -> Mapping[str, InterfaceCounters]:
        """Return pod id → counters of its `eth0`."""
        return {**self._embedded.interface_stats(), **self._cni.interface_stats()}

    async def shutdown(self, *, remove: bool) -> None:
        """End both; see `EmbeddedNetwork.shutdown`."""
        await self._cni.shutdown()
        await self._embedded.shutdown(remove=remove)
