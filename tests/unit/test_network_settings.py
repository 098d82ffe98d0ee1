"""Where the embedded network's subnets come from: the configuration, else kubelet's last pod CIDR, else the default."""

from pathlib import Path
from typing import Any

import pytest

from crishim.config.model import NetworkConfig
from crishim.daemon.networking import network_settings
from crishim.errors import FailedPreconditionError, InvalidArgumentError
from crishim.network.embedded import EmbeddedNetwork
from crishim.network.ipam import MemoryLeases
from crishim.pods.runtime import POD_CIDR_KEY
from tests.fakes.daemon import running

DEFAULT = NetworkConfig().subnets


def test_the_configuration_wins_and_the_pod_cidr_comes_before_the_default() -> None:
    mine = NetworkConfig(subnets=("10.9.0.0/16",))
    assert network_settings(mine, ["10.8.0.0/24"]).subnets == ("10.9.0.0/16",)
    assert network_settings(mine).fixed
    told = network_settings(NetworkConfig(), ["10.8.0.0/24", "fd00:8::/64"])
    assert (told.subnets, told.fixed) == (("10.8.0.0/24", "fd00:8::/64"), False)
    assert network_settings(NetworkConfig()).subnets == DEFAULT


@pytest.mark.parametrize(
    "stored", [None, [], ["nonsense"], [7], {"a": 1}, "10.8.0.0/24", ["10.8.0.0/24", "10.9.0.0/24"]]
)
def test_a_stored_value_that_makes_no_sense_is_passed_over(stored: Any) -> None:
    assert network_settings(NetworkConfig(), stored).subnets == DEFAULT


async def test_a_pod_cidr_that_differs_from_the_configured_subnets_is_refused() -> None:
    network = EmbeddedNetwork(network_settings(NetworkConfig(subnets=("10.9.0.0/16", "fd00:9::/64"))), MemoryLeases())
    await network.use_pod_cidr(["fd00:9::/64", "10.9.0.0/16"])
    with pytest.raises(FailedPreconditionError) as caught:
        await network.use_pod_cidr(["10.9.4.0/24"])
    assert "pod_cidr: 10.9.4.0/24 differs" in str(caught.value)
    assert "network.subnets 10.9.0.0/16, fd00:9::/64" in str(caught.value)
    assert set(network.usage()) == {"10.9.0.0/16", "fd00:9::/64"}


async def test_a_pod_cidr_takes_the_place_of_the_default() -> None:
    network = EmbeddedNetwork(network_settings(NetworkConfig()), MemoryLeases())
    await network.use_pod_cidr(["10.9.4.0/24", "fd00:9::/64"])
    assert network.addresses() == {
        ("ipv4", "used"): 0, ("ipv4", "free"): 253, ("ipv6", "used"): 0, ("ipv6", "free"): 2**64 - 2,
    }  # fmt: skip


async def test_the_runtime_keeps_what_the_network_took(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.runtime.update_pod_cidr("")
        assert not daemon.network.subnets
        assert daemon.store.values.get(POD_CIDR_KEY) is None
        await daemon.runtime.update_pod_cidr("10.9.4.0/24,fd00:9::/64")
        assert daemon.network.subnets == ("10.9.4.0/24", "fd00:9::/64")
        with pytest.raises(InvalidArgumentError, match="is no subnet"):
            await daemon.runtime.update_pod_cidr("10.300.0.0/24")
        daemon.faults.fail("network.use_pod_cidr", FailedPreconditionError("the range is in use"))
        with pytest.raises(FailedPreconditionError, match="in use"):
            await daemon.runtime.update_pod_cidr("10.10.0.0/24")
        await daemon.restart()
        assert daemon.store.values.get(POD_CIDR_KEY) == ["10.9.4.0/24", "fd00:9::/64"]
