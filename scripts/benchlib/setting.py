"""What a run of the benchmarks has."""

from dataclasses import dataclass

from scripts.benchlib.peers import Peers


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run has: the peers, the cache, a scratch directory, the systems asked for, and how thorough it is."""

    peers: Peers
    cache: str
    scratch: str
    systems: list[str] | None
    quick: bool = False

    def asked(self, name: str) -> bool:
        """Tell whether a system is to be measured."""
        return self.systems is None or name in self.systems

    def times(self, full: int) -> int:
        """Return how many samples to take where a full run takes `full`."""
        return max(2, full // 5) if self.quick else full
