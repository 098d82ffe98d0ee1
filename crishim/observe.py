"""What lower layers have to tell the metrics, without knowing them: an observer that they are handed.

`metrics/` implements it with prometheus-client; `NullObserver` is for tests and for parts run alone.
"""

from typing import Protocol


class Observer(Protocol):
    """Counts and times of what happens below the server."""

    def start_phase(self, step: str, seconds: float) -> None:
        """One step of a pod's or container's start took `seconds` (sandbox_keeper, network, create, start…)."""

    def image_pull(self, *, outcome: str, seconds: float) -> None:
        """A pull ended: outcome `ok`, `cached` or an error's name."""

    def image_received(self, size: int) -> None:
        """A pull received `size` bytes of a blob; called from threads while it comes."""

    def image_push(self, *, outcome: str, seconds: float) -> None:
        """A push ended: outcome `ok` or an error's name."""

    def image_sent(self, size: int) -> None:
        """A push sent `size` bytes of a blob; called from threads while it goes."""

    def leak_reclaimed(self, kind: str, count: int = 1) -> None:
        """Something without an owner was removed (mount, cgroup, netns, link, keeper, layer, blob, container_dir)."""

    def event_merged(self, count: int = 1) -> None:
        """Events of a slow subscriber were merged into later ones of the same object."""

    def events_ended(self) -> None:
        """A subscriber was so slow that its events ended."""

    def degraded(self, what: str) -> None:
        """The host lacks an ability and the nearest allowed value was used (oom_score_adj, rlimit…)."""

    def network_attach(self, kind: str, seconds: float) -> None:
        """A pod was attached to the network of this kind (`embedded` or `cni`) in `seconds`; failures do not count."""

    def network_detach(self, kind: str, seconds: float) -> None:
        """A pod was detached from the network of this kind in `seconds`; failures do not count."""

    def network_error(self, plugin: str, code: str) -> None:
        """A plugin (a CNI plugin's type, or `embedded`) failed; `code` is the plugin's number or our error's code."""


class NullObserver:
    """Observes nothing."""

    def start_phase(self, step: str, seconds: float) -> None:
        """Ignore."""

    def image_pull(self, *, outcome: str, seconds: float) -> None:
        """Ignore."""

    def image_received(self, size: int) -> None:
        """Ignore."""

    def image_push(self, *, outcome: str, seconds: float) -> None:
        """Ignore."""

    def image_sent(self, size: int) -> None:
        """Ignore."""

    def leak_reclaimed(self, kind: str, count: int = 1) -> None:
        """Ignore."""

    def event_merged(self, count: int = 1) -> None:
        """Ignore."""

    def events_ended(self) -> None:
        """Ignore."""

    def degraded(self, what: str) -> None:
        """Ignore."""

    def network_attach(self, kind: str, seconds: float) -> None:
        """Ignore."""

    def network_detach(self, kind: str, seconds: float) -> None:
        """Ignore."""

    def network_error(self, plugin: str, code: str) -> None:
        """Ignore."""
