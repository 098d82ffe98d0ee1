"""What the embedded network is configured with; built from the instance's configuration by whoever wires the daemon."""

import re
from dataclasses import dataclass

from crishim.errors import InvalidArgumentError

ALIAS_PREFIX = "crishim "
ALIAS_BYTES = 255
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MIN_MTU = 1280  # the least that IPv6 allows (RFC 8200)
_MAX_MTU = 65535


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """One instance's network.

    `bridge` and `table` name its bridge and its nftables table and must be the instance's own; `subnets` are at most
    one of each family, like `10.88.0.0/16` and `fd00:88::/64`; `mtu` None or 0 takes that of the host's default route.
    `owner` tells this instance from others (its root directory): a bridge that carries another's name is refused.
    `fixed` says that the subnets were configured on purpose, so that kubelet's pod CIDR may only repeat them.
    `release_seconds` is how long a pod's namespace may outlive its pod before the link is deleted explicitly.
    """

    bridge: str
    subnets: tuple[str, ...]
    table: str = ""
    mtu: int | None = None
    owner: str = ""
    fixed: bool = False
    release_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what the kernel would refuse later.

        Raises:
            InvalidArgumentError: names the setting.
        """
        if not _NAME.fullmatch(self.bridge) or self.bridge in {".", ".."}:
            raise InvalidArgumentError("network.bridge", f"{self.bridge!r} must be 1-15 letters, digits, _, . or -")
        if self.mtu and not _MIN_MTU <= self.mtu <= _MAX_MTU:
            raise InvalidArgumentError("network.mtu", f"{self.mtu} must be from {_MIN_MTU} to {_MAX_MTU}")

    @property
    def alias(self) -> str:
        """What the bridge carries beside its name, as the kernel keeps it; "" without an owner."""
        text = f"{ALIAS_PREFIX}{self.owner}".encode()[:ALIAS_BYTES] if self.owner else b""
        return text.decode("utf-8", "ignore")

    @property
    def table_name(self) -> str:
        """Name of the nftables table; the bridge's, unless it was given."""
        return self.table or f"crishim-{self.bridge}"
