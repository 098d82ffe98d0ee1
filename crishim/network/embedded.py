"""The embedded network: a bridge, leases, NAT and published ports over netlink and nf_tables, no program started.

```
        attach                      detach                link gone (RTM_DELLINK)
  free ───────► attached ─────────────────────► draining ───────────────────────► free
                   │ namespace dies first: its link is gone, so detach frees at once
```

Books (leases, ports, links) live on the event loop; everything that may block runs in one worker thread, one job
after the other. Invariant: an address is leased before its link is made, and freed only when its link is gone; a
published port is struck out only when its map element is gone.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import structlog

from crishim.clock import monotonic
from crishim.errors import (
    AlreadyExistsError,
    CrishimError,
    FailedPreconditionError,
    KernelError,
    ResourceExhaustedError,
)
from crishim.network.counters import InterfaceCounters, read_counters
from crishim.network.guard import Sender
from crishim.network.ipam import Ipam, Leases
from crishim.network.kernel import HostState, Kernel
from crishim.network.links import Background, PodLinks
from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.network.plan import (
    INTERFACE,
    POD_CIDR_FIELD,
    PodAddress,
    PodPlan,
    check_ports,
    hardware_address,
    link_name,
    plan_rules,
    plan_sender,
    plan_subnets,
)
from crishim.network.ports import Owner, PortTable
from crishim.network.settings import NetworkSettings
from crishim.observe import NullObserver, Observer

T = TypeVar("T")

KIND = "embedded"
_REPAIR_SECONDS = 5.0
_PATIENCE_SECONDS = 0.1  # a namespace usually ends within milliseconds of its last user
_EXHAUSTED_SECONDS = 5.0


class EmbeddedNetwork:
    """Implements `network.model.NetworkApi`; all methods are for one event loop."""

    def __init__(self, settings: NetworkSettings, leases: Leases) -> None:
        """Parse the settings and load the leases.

        Raises:
            InvalidArgumentError: a setting is wrong.
        """
        self._settings = settings
        self._ipam = Ipam(plan_subnets(settings.subnets), leases)
        self._kernel = Kernel(settings, self._ipam.subnets)
        self._ports = PortTable()
        self._attached: dict[str, str] = {}  # link → pod id
        self._senders: dict[str, Sender] = {}  # pod id → what it may send as, while it holds addresses
        self._dismissed: list[Sender] = []
        self._attaching: set[str] = set()  # links that are being made: reconcile leaves them alone
        self._background = Background()
        self._links = PodLinks(self._delete_link, self._release, settings.release_seconds, self._background)
        self._observer: Observer = NullObserver()
        self._freed = asyncio.Event()
        self._worker: ThreadPoolExecutor | None = None
        self._mtu = 0
        self._failure = "the network is not started"
        self._checked = 0.0
        self._starting = asyncio.Lock()
        self._log = structlog.get_logger("crishim.network")

    async def start(self) -> None:
        """Make or adopt bridge and table; idempotent.

        A host that does not allow it leaves the network not ready, with the reason in `ready`; attach tries again.
        """
        async with self._starting:
            if not self._failure:
                return
            try:
                self._adopt(await self._open())
            except CrishimError as error:
                self._failure = str(error)
                self._checked = asyncio.get_running_loop().time()
                self._log.warning("network not ready", reason=self._failure)

    async def _open(self) -> HostState:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="crishim-network")
        self._links.watch(self._on_other_link, lambda: self._background.spawn(self._look()))
        conflict = self._ipam.conflict([pool.subnet for pool in self._ipam.pools])
        if conflict:
            raise FailedPreconditionError(conflict)
        held = self._ipam.holdings()
        self._senders = {pod_id: plan_sender(self._link(pod_id), ips) for pod_id, ips in held.items()}
        return await self._work(self._kernel.start, self._living())

    def _adopt(self, state: HostState) -> None:
        self._mtu = state.bridge.mtu
        self._links.present = set(state.links) | self._attaching
        for owner, rule in state.ports:
            if rule not in self._ports.rules(owner.pod_id):
                self._ports.enter(owner, [rule])
        self._attached |= {sender.link: pod_id for pod_id, sender in self._senders.items() if self._lives(sender)}
        self._failure = ""
        self._checked = asyncio.get_running_loop().time()
        for change in state.bridge.changes:
            self._log.info("network: host changed", change=change)
        self._tell_lack()

    def _tell_lack(self) -> None:
        """Say that pods are not held to their addresses; without that the network works, if less safely."""
        if lack := self._kernel.admission.lack:
            self._observer.degraded("pod_addresses")
            self._log.warning("network: pods can send under others' addresses, see 'crishim check'", reason=lack)

    def _link(self, pod_id: str) -> str:
        return link_name(self._settings.bridge, pod_id)

    def _lives(self, sender: Sender) -> bool:
        return sender.link not in self._links.draining

    def _living(self) -> tuple[Sender, ...]:
        """Return the senders that keep their addresses."""
        return tuple(sender for sender in self._senders.values() if self._lives(sender))

    async def use_subnets(self, texts: Sequence[str]) -> None:
        """Give new pods addresses of these subnets; pods that live keep theirs, and all reach each other.

        Raises:
            InvalidArgumentError: a subnet is wrong.
            FailedPreconditionError: a living pod holds an address that cannot be one, or the range is someone else's.
            KernelError: the host refuses; everything stays as it was.
        """
        subnets = plan_subnets(texts)
        async with self._starting:
            before = [pool.subnet for pool in self._ipam.pools]
            if list(subnets) == before:
                return
            conflict = self._ipam.conflict(subnets)
            if conflict:
                raise FailedPreconditionError(conflict)
            # First the books, so that nothing is taken of the old range meanwhile; its leases keep it served.
            self._ipam.use(subnets)
            try:
                if self._worker is None:
                    self._kernel.use(self._ipam.subnets)
                else:
                    await self._work(self._kernel.use, self._ipam.subnets)
            except BaseException:
                self._ipam.use(before)
                raise

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        """Take kubelet's pod CIDR, unless the configuration names other subnets.

        Raises:
            FailedPreconditionError: it does; or as for `use_subnets`.
        """
        configured = [subnet.text for subnet in plan_subnets(self._settings.subnets)]
        wanted = [subnet.text for subnet in plan_subnets(subnets, POD_CIDR_FIELD)]
        if self._settings.fixed and wanted != configured:
            raise FailedPreconditionError(
                f"{POD_CIDR_FIELD}: {', '.join(wanted)} differs from the configured network.subnets"
                f" {', '.join(configured)}; make them equal, or leave network.subnets out"
            )
        await self.use_subnets(wanted)

    def used(self) -> bool:
        """Whether it was started, or a pod still holds an address of it."""
        return self._worker is not None or bool(self._ipam.owners())

    def observe(self, observer: Observer) -> None:
        """Tell this observer of attaches, detaches and failures from now on."""
        self._observer = observer
        self._tell_lack()

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        """Give the pod `eth0`, addresses, routes, `lo` and its published ports; on failure nothing is left.

        Raises:
            InvalidArgumentError: a port of the request cannot be right.
            AlreadyExistsError: a published port belongs to another pod, or this pod is attached.
            ResourceExhaustedError: no address is free.
            FailedPreconditionError: the network is not ready.
        """
        began = monotonic()
        with self._failures():
            attachment = await self._attach(netns, request)
        self._observer.network_attach(KIND, monotonic() - began)
        return attachment

    async def _attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        check_ports(request.ports, [pool.subnet.version for pool in self._ipam.pools])
        await self._require()
        link = self._link(request.pod_id)
        if link in self._attached or link in self._links.draining:
            raise AlreadyExistsError(f"pod {request.pod_id[:13]} already has network interface {link}")
        self._attached[link] = request.pod_id
        self._attaching.add(link)
        try:
            addresses = await self._take(request.pod_id)
            plan = PodPlan(
                request.pod_id,
                link,
                hardware_address(addresses[0].address),
                self._mtu,
                addresses,
                plan_rules(request, addresses),
            )
            owner = Owner(request.pod_id, f"{request.namespace}/{request.name}" if request.name else "")
            self._ports.claim(owner, plan.rules)
            self._senders[request.pod_id] = plan.sender
            self._links.present.add(link)
            if not await self._work(self._kernel.connect, plan, netns, owner):
                await self._repair()
                await self._require()
                await self._work(self._kernel.join, plan, netns)
        except BaseException as error:
            # A task of its own: a caller that is cancelled once more must not leave half of it.
            await asyncio.wait([self._background.spawn(self._give_back(link, request.pod_id, error))])
            raise
        finally:
            self._attaching.discard(link)
        return Attachment(
            ips=tuple(given.address for given in addresses),
            interface=INTERFACE,
            host_interface=link,
            mac=plan.mac,
            gateway=addresses[0].subnet.gateway,
            mtu=self._mtu,
            kind=KIND,
        )

    async def detach(self, pod_id: str, attachment: Attachment | None) -> None:  # noqa: ARG002  the books know more
        """Take the pod's ports back and let its address go as soon as its link is gone; idempotent.

        Returns without waiting for the link. A port that the kernel does not give back is an error, and stays booked.
        """
        began = monotonic()
        link = self._link(pod_id)
        with self._failures():
            await self._unpublish(pod_id)
        self._let_go(link, pod_id)
        self._observer.network_detach(KIND, monotonic() - began)

    def _let_go(self, link: str, pod_id: str) -> None:
        if link in self._links.draining:
            return
        self._attached.pop(link, None)
        if link in self._links.present:
            self._links.drain(link, pod_id)
        else:
            self._release(pod_id)

    async def reconcile(self, live: frozenset[str]) -> int:
        """Remove links, published ports and leases of pods that are not in `live`; return how many things went."""
        await self._require()
        bridge = self._settings.bridge
        keep = {link_name(bridge, pod_id) for pod_id in live} | self._attaching | self._links.draining.keys()
        removed = 0
        for link in sorted(await self._work(self._kernel.pod_links) - keep):
            removed += await self._delete_link(link)
            self._links.gone(link)
        for pod_id in sorted(self._ports.pods() | self._ipam.owners()):
            if link_name(bridge, pod_id) in keep:
                continue
            removed += len(self._ports.rules(pod_id))
            await self._unpublish(pod_id)
            removed += self._release(pod_id)
            self._attached.pop(link_name(bridge, pod_id), None)
        self._attached |= {link_name(bridge, pod_id): pod_id for pod_id in live}
        return removed

    def interface_stats(self) -> dict[str, InterfaceCounters]:
        """Return pod id → counters of its `eth0`, by one read for all pods; never waits for the rtnl lock."""
        return read_counters(self._attached, INTERFACE)

    def usage(self) -> Mapping[str, tuple[int, int]]:
        """Return subnet → (addresses in use, addresses in all)."""
        return {pool.subnet.text: (pool.used, pool.size) for pool in self._ipam.pools}

    def addresses(self) -> Mapping[tuple[str, str], int]:
        """Return (family, state) → number of addresses; those of a range that is no longer handed out count as used."""
        found: dict[tuple[str, str], int] = {}
        for pool in (*self._ipam.pools, *self._ipam.retired):
            used = f"ipv{pool.subnet.version}", "used"
            found[used] = found.get(used, 0) + pool.used
        for pool in self._ipam.pools:
            found[f"ipv{pool.subnet.version}", "free"] = max(pool.size - pool.used, 0)
        return found

    async def refresh(self) -> None:
        """Do nothing: `ready` looks itself, and repairs, in the background."""

    def ready(self) -> tuple[bool, str, str]:
        """Return (ready, reason, message) for the NetworkReady condition.

        Asking also looks, at most every 5 s and in the background, whether bridge and table are still there.
        """
        now = asyncio.get_running_loop().time()
        if self._worker is not None and now - self._checked >= _REPAIR_SECONDS:
            self._checked = now
            self._background.spawn(self.start() if self._failure else self._repair())
        return (False, "NetworkNotReady", self._failure) if self._failure else (True, "", "")

    async def shutdown(self, *, remove: bool) -> None:
        """Close sockets and end the worker; with `remove` and no pod left also delete bridge and table."""
        await self._background.finish()
        if remove:
            for link in list(self._links.draining):
                await self._links.delete(link)
        self._links.close()
        if self._worker is not None:
            try:
                if remove and not self._failure and not await self._work(self._kernel.pod_links):
                    await self._work(self._kernel.remove)
            finally:
                await self._work(self._kernel.close)
                self._worker.shutdown()
                self._worker = None
        self._failure = "the network is shut down"

    # --- within -------------------------------------------------------------------------------

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Tell the observer of an error that passes."""
        try:
            yield
        except CrishimError as error:
            self._observer.network_error(KIND, type(error).__name__.removesuffix("Error"))
            if isinstance(error, KernelError) and not self._failure:
                self._background.spawn(self._repair())  # the bridge or the table may have been taken away
            raise

    async def _require(self) -> None:
        if self._failure:
            await self.start()
        if self._failure:
            raise FailedPreconditionError(f"the pod network is not ready: {self._failure}")

    async def _work(self, job: Callable[..., T], *args: object) -> T:
        """Run a job in the worker. A cancelled caller still waits for it: half-done work has no owner."""
        assert self._worker is not None
        future = asyncio.get_running_loop().run_in_executor(self._worker, job, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def _take(self, pod_id: str) -> tuple[PodAddress, ...]:
        """Lease addresses; if none is free but some are about to be, wait for those."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _EXHAUSTED_SECONDS
        patience = _PATIENCE_SECONDS
        while (taken := self._ipam.take(pod_id)) is None:
            if not self._links.draining or loop.time() >= deadline:
                full = ", ".join(f"{pool.subnet.text} ({pool.size} addresses)" for pool in self._ipam.full())
                raise ResourceExhaustedError(
                    f"no free pod address in {full}; remove pods or give the instance a larger subnet"
                )
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), patience)
            except TimeoutError:
                patience = deadline - loop.time()
                for link in list(self._links.draining):
                    await self._links.delete(link)
        return taken

    async def _give_back(self, link: str, pod_id: str, error: BaseException) -> None:
        """Take back all that a failed attach made; what does not go now is noted on `error` and tried again."""
        self._attached.pop(link, None)
        try:
            await self._unpublish(pod_id)
        except CrishimError as fault:
            error.add_note(f"clean-up: take ports back: {fault}")
        if link in self._links.present:
            self._links.drain(link, pod_id)
            await self._links.delete(link)
        else:
            self._release(pod_id)

    async def _unpublish(self, pod_id: str) -> None:
        if rules := self._ports.rules(pod_id):
            await self._work(self._kernel.unpublish, rules)
            self._ports.release(pod_id)

    def _on_other_link(self, name: str) -> None:
        if name == self._settings.bridge and not self._failure:
            self._background.spawn(self._repair())

    def _release(self, pod_id: str) -> int:
        """Free a pod's addresses, now that its link is gone; return how many."""
        freed = self._ipam.release(pod_id)
        self._freed.set()
        sender = self._senders.pop(pod_id, None)
        if sender is not None:
            if not self._dismissed:
                self._background.spawn(self._dismiss())
            self._dismissed.append(sender)
        return freed

    async def _dismiss(self) -> None:
        """Strike out who is gone, off everybody's way: what is left names a link that is no more."""
        senders, self._dismissed = self._dismissed, []
        try:
            await self._work(self._kernel.dismiss, senders)
        except CrishimError as error:
            self._log.warning("network: what pods left in the table stays there", error=str(error))

    async def _delete_link(self, link: str) -> bool:
        return await self._work(self._kernel.delete_link, link)

    async def _look(self) -> None:
        """News of links were lost: look what is there."""
        try:
            self._links.compare(await self._work(self._kernel.pod_links), self._attaching)
        except CrishimError as error:
            self._log.warning("network: cannot list links", error=str(error))

    async def _repair(self) -> None:
        ports = self._ports.all()
        try:
            made = await self._work(self._kernel.repair, ports, self._living())
        except CrishimError as error:
            self._failure = str(error)
            self._log.warning("network not ready", reason=self._failure)
            return
        for what in made:
            self._log.warning("network: someone had removed it, made again", what=what)
