"""What `network/` is asked for and answers: plain records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crishim.observe import Observer
from crishim.request import DnsConfig, PortMapping


@dataclass(frozen=True, slots=True)
class PodNetns:
    """A pod's network namespace as its keeper hands it over.

    `path` is the pin below `<state>/ns`; `netns_fd` an open fd of the namespace; `netlink_fd` an AF_NETLINK
    NETLINK_ROUTE socket that was created *inside* the namespace, so that requests on it act there without setns.
    The caller owns both fds and closes them after attach.
    """

    pod_id: str
    path: str
    netns_fd: int
    netlink_fd: int


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """What a pod wants of the network; name, namespace and uid are kubelet's (for CNI args and messages).

    Annotations, `dns` and `cgroup_parent` are for CNI plugins that declare a capability for them.
    """

    pod_id: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    ports: tuple[PortMapping, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    dns: DnsConfig | None = None
    cgroup_parent: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a pod got; kept in the sandbox's record and given back to detach.

    `kind` says which network it is: `embedded` or `cni`.
    """

    ips: tuple[str, ...]
    interface: str = "eth0"
    host_interface: str = ""
    mac: str = ""
    gateway: str = ""
    mtu: int = 1500
    kind: str = "embedded"


class NetworkApi(Protocol):
    """The embedded network, CNI, and the choice of one of them; raises only errors of `crishim.errors`."""

    async def start(self) -> None:
        """Make or adopt bridge and tables; idempotent."""

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:
        """Give the pod an interface `eth0`, addresses, routes and `lo`; on failure nothing is left."""

    async def detach(self, pod_id: str, attachment: Attachment | None) -> None:
        """Release ports, rules and addresses; idempotent; the veth goes with its namespace (or explicitly after 1 s).

        The address is free again only when its link is gone.
        """

    async def reconcile(self, live: frozenset[str]) -> int:
        """Remove links, elements and addresses of pods that are not in `live`; return how many things went."""

    async def refresh(self) -> None:
        """Wait a moment for what `ready` will say, if what it is about changed since it was last asked."""

    def ready(self) -> tuple[bool, str, str]:
        """Return (ready, reason, message) for the NetworkReady condition."""

    def observe(self, observer: Observer) -> None:
        """Tell this observer of attaches, detaches and failures from now on."""

    def addresses(self) -> Mapping[tuple[str, str], int]:
        """Return (family `ipv4` or `ipv6`, state `used` or `free`) → number of pod addresses that are managed here."""

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        """Give new pods addresses of kubelet's pod CIDR, one subnet a family; pods that live keep theirs.

        Raises:
            FailedPreconditionError: other subnets are configured, or the range is in use.
        """

    async def shutdown(self, *, remove: bool) -> None:
        """Close sockets; with `remove` and no pod left also delete bridge and tables."""
