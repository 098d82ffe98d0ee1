"""The network of an instance with `network.enabled = false`: there is none, and Status says so.

Pods with the host's network run; a pod that wants a network of its own is refused.
"""

from collections.abc import Mapping, Sequence

from crishim.errors import FailedPreconditionError
from crishim.network.model import Attachment, AttachRequest, PodNetns
from crishim.observe import Observer
from crishim.pods.views import InterfaceStats

REASON = "NetworkDisabled"
MESSAGE = "the configuration has network.enabled = false: only pods with the host's network can run"


class DisabledNetwork:
    """Implements `pods.ports.Network` by having nothing."""

    async def start(self) -> None:
        """Make nothing."""

    async def attach(self, netns: PodNetns, request: AttachRequest) -> Attachment:  # noqa: ARG002  the protocol's
        """Refuse."""
        raise FailedPreconditionError(MESSAGE)

    async def detach(self, pod_id: str, attachment: Attachment | None) -> None:
        """Have nothing to release."""

    async def reconcile(self, live: frozenset[str]) -> int:  # noqa: ARG002  the protocol's
        """Have nothing that could be left over."""
        return 0

    def observe(self, observer: Observer) -> None:
        """Have nothing to tell."""

    def addresses(self) -> Mapping[tuple[str, str], int]:
        """Manage no address."""
        return {}

    async def use_pod_cidr(self, subnets: Sequence[str]) -> None:
        """Have no use for a range: pods of the host's network have its addresses."""

    def interface_stats(self) -> Mapping[str, InterfaceStats]:
        """Know no interface."""
        return {}

    async def refresh(self) -> None:
        """Have nothing to look at."""

    def ready(self) -> tuple[bool, str, str]:
        """Return that there is no network, and why."""
        return False, REASON, MESSAGE

    async def shutdown(self, *, remove: bool) -> None:
        """Have nothing to end."""
