"""The pods' network, of what is configured and what kubelet told an earlier daemon.

The configuration wins: only where it leaves network.subnets out does the pod CIDR of UpdateRuntimeConfig, which
the store keeps, take its place. Invariant: a stored value that no longer makes sense is passed over, not an error.
"""

from typing import Any

from crishim.config.model import NetworkConfig
from crishim.errors import InvalidArgumentError
from crishim.network.chosen import ChosenNetwork
from crishim.network.cni.client import Client
from crishim.network.cni.config import Watcher
from crishim.network.cni.network import CniNetwork
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.plan import plan_subnets
from crishim.network.settings import NetworkSettings
from crishim.pods.runtime import POD_CIDR_KEY
from crishim.store.store import Store


def build(config: NetworkConfig, store: Store, owner: str) -> ChosenNetwork:
    """Return the network of an instance, not started.

    Args:
        config: the instance's configuration.
        store: has the embedded network's leases, CNI's attachments and the pod CIDR.
        owner: as for `network_settings`.
    """
    stored = store.values.get(POD_CIDR_KEY)
    current = Watcher(config.cni_conf_dir).current if config.cni_conf_dir else _no_network
    client = Client(config.cni_bin_dirs, float(config.cni_seconds))
    cni = CniNetwork(current, client, store.attachments, _sound(stored))
    return ChosenNetwork(current, cni, EmbeddedNetwork(network_settings(config, stored, owner), store.leases))


def _no_network() -> None:
    return


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
