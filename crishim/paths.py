"""Where an instance keeps things: every path is derived here from `root`, `state` and `images`, nowhere else.

`root` survives a reboot; `state` is on a tmpfs and its absence is how a reboot is known. `images`, if it is not empty,
takes the place of the root for blobs and layers, which may then lie on a file system of their own: they are renamed and
linked only among each other.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one instance."""

    root: str
    state: str
    images: str = ""

    # --- root: survives a reboot -------------------------------------------------------------
    @property
    def database(self) -> str:
        """SQLite file with sandboxes, containers, images, names, leases."""
        return f"{self.root}/state.db"

    @property
    def content(self) -> str:
        """Verified blobs as they came: `content/sha256/<hex>`."""
        return f"{self.images or self.root}/content"

    @property
    def layers(self) -> str:
        """Unpacked layers, one directory each."""
        return f"{self.images or self.root}/layers"

    @property
    def containers(self) -> str:
        """Read/write layers: `containers/<id>/{upper,work}`."""
        return f"{self.root}/containers"

    def container(self, container_id: str) -> str:
        """Directory of one container's read/write layer."""
        return f"{self.root}/containers/{container_id}"

    @property
    def image_lock(self) -> str:
        """Lock file of the image path: two roots must not share one, since each removes what it does not know."""
        return f"{self.images or self.root}/images.lock"

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
        """Runtime directory of one pod: its keeper's socket and journal, and on old kernels its shared memory."""
        return f"{self.state}/pods/{pod_id}"

    def journal(self, pod_id: str) -> str:
        """The keeper's journal of events that the daemon has not acknowledged."""
        return f"{self.pod(pod_id)}/journal"

    @property
    def rehearsal(self) -> str:
        """What the spawner's rehearsal uses; gone when that is over."""
        return f"{self.state}/rehearsal"

    @property
    def empty(self) -> str:
        """An empty directory on which containers' roots are mounted, each in its own mount namespace."""
        return f"{self.state}/empty"
