"""The embedded network's settings: what is configured, and what kubelet told an earlier daemon.

Pure. The configuration wins: only where it leaves network.subnets out does the pod CIDR of UpdateRuntimeConfig, which
the store keeps, take its place. Invariant: a stored value that no longer makes sense is passed over, not an error.
"""

from typing import Any

from crishim.config.model import NetworkConfig
from crishim.errors import InvalidArgumentError
from crishim.network.plan import plan_subnets
from crishim.network.settings import NetworkSettings


def network_settings(config: NetworkConfig, stored: Any = None, owner: str = "") -> NetworkSettings:
    """Return the settings of the embedded network.

    Args:
        config: the instance's configuration.
        stored: the last pod CIDR's subnets as the store gives them back (`pods.runtime.POD_CIDR_KEY`), or None.
        owner: the instance's root, which its bridge is marked with.
    """
    fixed = config.subnets != NetworkConfig().subnets
    subnets = config.subnets if fixed else _sound(stored) or config.subnets
    return NetworkSettings(bridge=config.bridge, subnets=subnets, mtu=config.mtu or None, owner=owner, fixed=fixed)


def _sound(stored: Any) -> tuple[str, ...]:
    if not isinstance(stored, list) or not stored or not all(isinstance(item, str) for item in stored):
        return ()
    try:
        return tuple(subnet.text for subnet in plan_subnets(stored))
    except InvalidArgumentError:
        return ()
