"""What the configuration says about images, as `images/` needs it (`crishim.config` maps its section to this)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Settings of pulls; all may change while the daemon runs.

    Attributes:
        pinned: references of images that are shown as pinned: kubelet and prune leave them alone.
        certs_d: directories with `<host>/hosts.toml`; the first that has a directory for the host counts.
        parallel_pulls: images pulled at a time.
        parallel_layers: blobs downloaded, and layers unpacked, at a time, over all pulls.
        chunk_bytes: a larger blob is pushed in pieces of this size, so that a broken one need not begin again.
        stall_seconds: seconds without a byte after which a connection is given up.
        attempts: how often one request is tried, with a pause that doubles, and a download that makes progress resumes.
        retry_seconds: the first of those pauses.
        retry_limit_seconds: the longest pause, and the longest Retry-After that is obeyed.
        max_layer_bytes: largest unpacked size of one layer.
        max_ratio: largest ratio of unpacked to packed bytes, looked at once a layer has grown past `ratio_floor_bytes`.
        ratio_floor_bytes: below this size the ratio does not matter.
        max_entries: entries of one layer.
        part_seconds: how long the received part of a broken download is kept for the next attempt.
    """

    pinned: tuple[str, ...] = ()
    certs_d: tuple[str, ...] = ("/etc/crishim/certs.d", "/etc/containerd/certs.d")
    parallel_pulls: int = 4
    parallel_layers: int = 4
    chunk_bytes: int = 64 << 20
    stall_seconds: int = 60
    attempts: int = 5
    retry_seconds: float = 0.25
    retry_limit_seconds: float = 30.0
    max_layer_bytes: int = 64 << 30
    max_ratio: int = 1100
    ratio_floor_bytes: int = 64 << 20
    max_entries: int = 10_000_000
    part_seconds: int = 3600
