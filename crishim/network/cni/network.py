"""Pods' network by CNI plugins: what was asked of them is on record, and is taken back until that has worked.

```
  attach                 all plugins worked          detach
 ────────► recorded ──────────────────────► attached ───────► DEL works: record deleted
              │ a plugin fails, or the daemon dies             │ fails: kept, tried again in the background and at start
              └────────────────────────────────────────────────┘
```
Invariant: a record is committed before the first plugin runs, and deleted only after DEL. A pod is taken back by the
configuration that it was attached with, whatever the directory holds by then. Out of scope: which pods come here
(`network.chosen`), running plugins (`client`), reading configurations (`config`).
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import structlog

from crishim.clock import monotonic
from crishim.errors import AlreadyExistsError, CrishimError, FailedPreconditionError
from crishim.linux.netlink import link as links
from crishim.linux.netlink.connection import Connection
from crishim.network.cni import config
from crishim.network.cni.client import Client
from crishim.network.cni.model import CniError, NetworkList, Result, Target
from crishim.network.cni.records import KIND, Record, Records, attachment, dumps, loads
from crishim.network.cni.wishes import arguments, capabilities
from crishim.network.counters import InterfaceCounters, read_counters
from crishim.network.links import Background
from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.observe import NullObserver, Observer

INTERFACE = "eth0"
NOT_READY = "NetworkNotReady"
_ASK_SECONDS = 5.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_PATIENCE_SECONDS = 10.0
_FIRST_ANSWER_SECONDS = 2.0
_OWN_NETNS = "/proc/self/ns/net"


class CniNetwork:
    """The pods of CNI networks; all methods are for one event loop.

    Args:
        current: returns the network for new pods, None if there is none; raises if the configuration is broken.
        client: runs the plugins.
        records: the store's table.
        pod_cidrs: kubelet's pod CIDR from an earlier run, for the capability ipRanges.
    """

    def __init__(
        self,
        current: Callable[[], NetworkList | None],
        client: Client,
        records: Records,
        pod_cidrs: Sequence[str] = (),
    ) -> None:
        self._current = current
        self._client = client
        self._table = records
        self._log = structlog.get_logger("crishim.network")
        self._records = self._load()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retrying: dict[str, asyncio.Task[None]] = {}
        self._background = Background()
        self._observer: Observer = NullObserver()
        self._pod_cidrs = tuple(pod_cidrs)
        self._asked = ""  # the network that `_failure` is about
        self._asked_at = float("-inf")
        self._failure = ""
        self._asking: asyncio.Task[None] | None = None

    def _load(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for pod_id, document in self._table.load().items():
            try:
                found[pod_id] = loads(document)
            except ValueError as error:
                self._table.quarantine(pod_id, str(error))
                self._log.error("network: an attachment cannot be read", pod=pod_id, error=str(error))
        return found

    def holds(self, pod_id: str) -> bool:
        """Whether plugins were asked to attach this pod and it is not yet taken back."""
        return pod_id in self._records

    def observe(self, observer: Observer) -> None:
        """Tell this observer of attaches, detaches and failures from now on."""
        self._observer = observer

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        """Give plugins with the capability ipRanges these subnets for new pods."""
        self._pod_cidrs = tuple(subnets)

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        """Set `lo` up and ADD the pod to the current network; after a failure DEL has run, or will.

        Raises:
            InvalidArgumentError: an annotation is wrong.
            AlreadyExistsError: the pod is attached.
            FailedPreconditionError: there is no network, or its configuration is broken.
            CniError: a plugin is not there, and nothing was begun; or one failed.
        """
        began = monotonic()
        with self._failures():
            network = self._current()
            if network is None:
                raise FailedPreconditionError("the pod network is not ready: no CNI network is configured")
            if netns.pod_id in self._records:
                raise AlreadyExistsError(f"pod {netns.pod_id[:13]} already is on network {network.name}")
            target = self._target(network, netns, request)
            await self._client.prepare(network)
            async with self._locks[netns.pod_id]:
                await asyncio.to_thread(_set_loopback_up, netns.netlink_fd)
                found = await self._add(netns.pod_id, network, target)
        self._observer.network_attach(KIND, monotonic() - began)
        return found

    def _target(self, network: NetworkList, netns: PodNetns, request: AttachRequest) -> Target:
        declared = {name for plugin in network.plugins for name in plugin.capabilities}
        wanted = capabilities(request, self._pod_cidrs)
        if "portMappings" in wanted and "portMappings" not in declared:
            self._log.warning(
                "network: host ports are not published, no plugin has the capability portMappings",
                pod=netns.pod_id,
                network=network.name,
            )
        config_values = {name: value for name, value in wanted.items() if name in declared}
        return Target(netns.pod_id, netns.path, INTERFACE, arguments(request), config_values)

    async def _add(self, pod_id: str, network: NetworkList, target: Target) -> Attachment:
        record = Record(network.name, network.text, target)
        self._commit(pod_id, record)

        def reach(count: int) -> None:
            self._records[pod_id] = replace(record, reached=count)

        try:
            result = await self._client.add(network, target, reach)
            _need_address(network, target, result)
            record = record.finished(result)
            found = attachment(record, result)
            self._commit(pod_id, record)
        except BaseException as error:
            # A task of its own: a caller that is cancelled once more must not leave half of it.
            await asyncio.wait([self._background.spawn(self._give_back(pod_id, error))])
            raise
        return found

    def _commit(self, pod_id: str, record: Record) -> None:
        self._table.put(pod_id, dumps(record))
        self._records[pod_id] = record

    async def _give_back(self, pod_id: str, error: BaseException) -> None:
        try:
            self._commit(pod_id, self._records[pod_id])  # with how far it came
            await self._delete(pod_id)
        except CrishimError as fault:
            error.add_note(f"clean-up: take the pod off its network: {fault}")
            self._try_again(pod_id)

    async def detach(self, pod_id: str) -> None:
        """DEL the pod by the configuration that it was attached with; idempotent.

        Raises:
            CniError: a plugin failed; it is tried again in the background.
        """
        began = monotonic()
        with self._failures():
            async with self._locks[pod_id]:
                if pod_id not in self._records:
                    return
                try:
                    await self._delete(pod_id)
                except BaseException:
                    self._try_again(pod_id)
                    raise
        self._observer.network_detach(KIND, monotonic() - began)

    async def _delete(self, pod_id: str) -> None:
        record = self._records[pod_id]
        target = record.target
        if not is_netns(target.netns):
            target = Target(target.container_id, "", target.ifname, target.args, target.runtime_config)
        await self._client.delete(config.parse(record.text), target, record.result, record.reached)
        self._table.delete(pod_id)
        del self._records[pod_id]
        self._locks.pop(pod_id, None)

    def _try_again(self, pod_id: str) -> None:
        """Repeat DEL until it works, unless that is being done."""
        if pod_id not in self._retrying:
            task = self._background.spawn(self._repeat(pod_id))
            self._retrying[pod_id] = task
            task.add_done_callback(lambda _: self._retrying.pop(pod_id, None))

    async def _repeat(self, pod_id: str) -> None:
        turn = 0
        while pod_id in self._records:
            await asyncio.sleep(_RETRY_SECONDS[min(turn, len(_RETRY_SECONDS) - 1)])
            turn += 1
            async with self._locks[pod_id]:
                if pod_id not in self._records:
                    return
                try:
                    with self._failures():
                        await self._delete(pod_id)
                except CrishimError as error:
                    self._log.warning("network: a pod cannot be taken off", pod=pod_id, error=str(error))
                else:
                    self._log.info("network: a pod was taken off at last", pod=pod_id)

    async def reconcile(self, live: frozenset[str]) -> int:
        """Take off the pods that are not in `live`, then let plugins collect what is nobody's; return how many went.

        For the daemon's start: what takes long is tried on in the background (DEL) or left (GC).
        """
        owed = [pod_id for pod_id in self._records if pod_id not in live]
        tasks = [self._background.spawn(self._take_off(pod_id)) for pod_id in owed]
        if tasks:
            await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._collect()  # before any ADD: its pod would not be among the valid ones
        except TimeoutError:
            self._log.warning("network: collecting garbage takes too long, given up until the next start")
        return sum(pod_id not in self._records for pod_id in owed)

    async def _take_off(self, pod_id: str) -> None:
        try:
            await self.detach(pod_id)
        except CrishimError as error:
            self._log.warning("network: a pod cannot be taken off", pod=pod_id, error=str(error))

    async def _collect(self) -> None:
        """GC of each network that pods are or were on, and of the current one (CNI 1.1.0, section GC)."""
        networks: dict[str, NetworkList] = {}
        try:
            for record in self._records.values():
                networks[record.network] = config.parse(record.text)
            if (current := self._current()) is not None:
                networks[current.name] = current
        except CrishimError as error:  # NetworkReady says so
            self._log.warning("network: the configuration cannot be used", error=str(error))
        for name, network in networks.items():
            if network.disable_gc or _version(network) < (1, 1, 0):
                continue
            owners = [record.target for record in self._records.values() if record.network == name]
            try:
                await self._client.gc(network, [(target.container_id, target.ifname) for target in owners])
            except CrishimError as error:
                self._log.warning("network: plugins cannot collect garbage", network=name, error=str(error))

    async def refresh(self) -> None:
        """Wait a moment for the answer of plugins that were not asked about this network yet; see `ready`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ANSWER_SECONDS):
                while self._is_waiting():
                    assert self._asking is not None
                    await asyncio.wait([self._asking])

    def _is_waiting(self) -> bool:
        """Ask, if it is time, and tell whether what `ready` says is only that no answer is there."""
        self.ready()
        try:
            network = self._current()
        except CrishimError:
            return False
        return network is not None and self._asked != network.text and not self._known(network)

    def _known(self, network: NetworkList) -> bool:
        """Tell whether a network is ready or not without asking its plugins."""
        return _version(network) < (1, 1, 0) or bool(self._client.missing(network))

    async def _ask(self, network: NetworkList) -> None:
        failure = ""
        try:
            await self._client.status(network)
        except CrishimError as error:
            failure = str(error)
            if failure != self._failure:
                self._log.warning("network not ready", reason=failure)
        self._asked, self._failure = network.text, failure

    def ready(self) -> tuple[bool, str, str]:
        """Return (ready, reason, message) for the NetworkReady condition; STATUS is asked at most every 5 s.

        Whether the plugins' programs are there is looked at each time, for networks of all versions.
        """
        try:
            network = self._current()
        except CrishimError as error:
            return False, NOT_READY, str(error)
        if network is None:
            return False, NOT_READY, "no CNI network is configured"
        if missing := self._client.missing(network):
            return False, NOT_READY, missing
        if _version(network) < (1, 1, 0):
            return True, "", ""
        fresh = self._asked == network.text
        now = asyncio.get_running_loop().time()
        asking = self._asking is not None and not self._asking.done()
        if not asking and (not fresh or now - self._asked_at >= _ASK_SECONDS):
            self._asked_at = now
            self._asking = self._background.spawn(self._ask(network))
        if not fresh:
            return False, NOT_READY, f"the plugins of CNI network {network.name} were asked and have not answered yet"
        return (False, NOT_READY, self._failure) if self._failure else (True, "", "")

    def interface_stats(self) -> Mapping[str, InterfaceCounters]:
        """Return pod id → counters of its `eth0`, for pods whose plugins tell of the host's end."""
        ends = {record.host_interface: pod_id for pod_id, record in self._records.items() if record.host_interface}
        return read_counters(ends, INTERFACE) if ends else {}

    async def shutdown(self) -> None:
        """Stop trying again: the records are there for the next start."""
        for task in (*self._retrying.values(), self._asking):
            if task is not None:
                task.cancel()
        await self._background.finish()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Tell the observer of an error that passes."""
        try:
            yield
        except CniError as error:
            self._observer.network_error(error.plugin, str(error.code))
            raise
        except CrishimError as error:
            self._observer.network_error(KIND, type(error).__name__.removesuffix("Error"))
            raise


def is_netns(path: str) -> bool:
    """Tell whether a network namespace is pinned at the path."""
    try:
        return os.stat(path).st_dev == os.stat(_OWN_NETNS).st_dev
    except OSError:
        return False


def _set_loopback_up(netlink_fd: int) -> None:
    with Connection(fd=netlink_fd) as inside:
        inside.request([links.set_up(links.LOOPBACK_INDEX, "lo")])


def _need_address(network: NetworkList, target: Target, result: Result) -> None:
    if not result.addresses:
        raise CniError(network.plugins[-1].type, f"its result has no address of {target.ifname}")


def _version(network: NetworkList) -> tuple[int, ...]:
    return tuple(int(part) for part in network.version.split("."))
