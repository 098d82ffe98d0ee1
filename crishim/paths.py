"""Where an instance keeps things: every path is derived here from `root` and `state`, nowhere else.

`root` survives a reboot; `state` is on a tmpfs and its absence is how a reboot is known.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one instance."""

    root: str
    state: str

    # --- root: survives a reboot -------------------------------------------------------------
    @property
    def database(self) -> str:
        """SQLite file with sandboxes, containers, images, names, leases."""
        return f"{self.root}/state.db"

    @property
    def content(self) -> str:
        """Verified blobs as they came: `content/sha256/<hex>`."""
        return f"{self.root}/content"

    @property
    def layers(self) -> str:
        """Unpacked layers, one directory each."""
        return f"{self.root}/layers"

    @property
    def containers(self) -> str:
        """Read/write layers: `containers/<id>/{upper,work}`."""
        return f"{self.root}/containers"

    def container(self, container_id: str) -> str:
        """Directory of one container's read/write layer."""
        return f"{self.root}/containers/{container_id}"

    # --- state: gone at reboot ----------------------------------------------------------------
    @property
    def lock(self) -> str:
        """Lock file held by the daemon that serves this root (in root: two states must not share one root)."""
        return f"{self.root}/lock"

    @property
    def namespaces(self) -> str:
        """Private mount in which network namespaces are pinned: `ns/<pod id>/net`."""
        return f"{self.state}/ns"

    def pinned_netns(self, pod_id: str) -> str:
        """The bind mount that pins a pod's network namespace."""
        return f"{self.state}/ns/{pod_id}/net"

    @property
    def pods(self) -> str:
        """One directory per pod that has a keeper."""
        return f"{self.state}/pods"

    def pod(self, pod_id: str) -> str:
        """Runtime directory of one pod: keeper.sock, journal, shm, hosts, hostname, resolv.conf."""
        return f"{self.state}/pods/{pod_id}"

    def journal(self, pod_id: str) -> str:
        """The keeper's journal of events that the daemon has not acknowledged."""
        return f"{self.pod(pod_id)}/journal"

    def shm(self, pod_id: str) -> str:
        """The pod's /dev/shm, one tmpfs for all its containers."""
        return f"{self.pod(pod_id)}/shm"

    @property
    def rehearsal(self) -> str:
        """What the spawner's rehearsal uses; gone when that is over."""
        return f"{self.state}/rehearsal"

    @property
    def empty(self) -> str:
        """An empty directory on which containers' roots are mounted, each in its own mount namespace."""
        return f"{self.state}/empty"
