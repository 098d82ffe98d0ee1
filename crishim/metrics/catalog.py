"""Every metric by name, kind, labels and help: what `/metrics` shows and what the table in README.md is made from.

Invariant: no label holds a pod, container or image name, an id or anything else that grows with use; the values of a
label are words of the code (a method, a code, a step, a state).
"""

from dataclasses import dataclass
from enum import Enum

BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""Upper bounds in seconds: starts take milliseconds, pulls minutes."""


class Kind(Enum):
    """Prometheus' metric types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric; `name` is the family's as `/metrics` shows it, so a counter's ends in `_total`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


RPCS = Spec(
    "crishim_rpcs_total",
    Kind.COUNTER,
    ("method", "code"),
    "Calls that ended, by gRPC status code; those beyond the CRI name their service, like Images.Pull.",
)
RPC_SECONDS = Spec(
    "crishim_rpc_duration_seconds", Kind.HISTOGRAM, ("method", "code"), "Time from a CRI call's arrival to its end."
)
RPCS_IN_FLIGHT = Spec("crishim_rpcs_in_flight", Kind.GAUGE, ("method",), "CRI calls under way.")
PODS = Spec("crishim_pods", Kind.GAUGE, ("state",), "Pod sandboxes, by CRI state.")
CONTAINERS = Spec("crishim_containers", Kind.GAUGE, ("state",), "Containers, by CRI state.")
KEEPERS = Spec("crishim_keepers", Kind.GAUGE, (), "Keeper processes that the daemon is connected to.")
START_PHASE = Spec(
    "crishim_start_phase_duration_seconds",
    Kind.HISTOGRAM,
    ("step",),
    "Time of each step in the start of pods and containers.",
)
PULLS = Spec(
    "crishim_image_pulls_total",
    Kind.COUNTER,
    ("outcome",),
    "Image pulls that ended: ok, cached (nothing to download), or the error's code.",
)
PULL_SECONDS = Spec(
    "crishim_image_pull_duration_seconds", Kind.HISTOGRAM, ("outcome",), "Time of image pulls, unpacking included."
)
PULL_BYTES = Spec(
    "crishim_image_pull_received_bytes_total",
    Kind.COUNTER,
    (),
    "Bytes of blobs that image pulls received from registries, counted as they come.",
)
PUSHES = Spec(
    "crishim_image_pushes_total", Kind.COUNTER, ("outcome",), "Image pushes that ended: ok, or the error's code."
)
PUSH_SECONDS = Spec("crishim_image_push_duration_seconds", Kind.HISTOGRAM, ("outcome",), "Time of image pushes.")
PUSH_BYTES = Spec(
    "crishim_image_push_sent_bytes_total",
    Kind.COUNTER,
    (),
    "Bytes of blobs that image pushes sent to registries, counted as they go.",
)
EVENTS_MERGED = Spec(
    "crishim_events_merged_total",
    Kind.COUNTER,
    (),
    "Events that slow subscribers got as part of a later event of the same pod or container.",
)
EVENT_STREAMS_ENDED = Spec(
    "crishim_event_streams_ended_total", Kind.COUNTER, (), "Event streams that ended since nobody read them in time."
)
LOG_DROPPED = Spec(
    "crishim_log_lines_dropped_total",
    Kind.COUNTER,
    (),
    "Lines of the daemon's log that were lost: nobody read its standard error, or its file could not be written.",
)
LEAKS = Spec(
    "crishim_leaks_reclaimed_total",
    Kind.COUNTER,
    ("kind",),
    "Things without an owner that were found and removed: mounts, cgroups, namespaces, links, keepers, files.",
)
DEGRADED = Spec(
    "crishim_degraded_total",
    Kind.COUNTER,
    ("what",),
    "Times that the host lacked an ability and the nearest allowed value was used.",
)
NETWORK_ATTACH_SECONDS = Spec(
    "crishim_network_attach_duration_seconds", Kind.HISTOGRAM, ("kind",), "Time to attach a pod, by kind of network."
)
NETWORK_DETACH_SECONDS = Spec(
    "crishim_network_detach_duration_seconds", Kind.HISTOGRAM, ("kind",), "Time to detach a pod, by kind of network."
)
NETWORK_ERRORS = Spec(
    "crishim_network_errors_total",
    Kind.COUNTER,
    ("plugin", "code"),
    "Failures to attach or detach, by CNI plugin (or embedded) and the code that it gave.",
)
NETWORK_ADDRESSES = Spec(
    "crishim_network_addresses",
    Kind.GAUGE,
    ("family", "state"),
    "Pod addresses of the embedded network that are used and free, by family.",
)
BUILD = Spec(
    "crishim_build_info",
    Kind.GAUGE,
    ("version", "cri_version", "python_version"),
    "Always 1; the labels say what runs.",
)
PROCESS = (
    Spec("process_cpu_seconds_total", Kind.COUNTER, (), "Processor time of the daemon, user and system."),
    Spec("process_resident_memory_bytes", Kind.GAUGE, (), "Resident memory of the daemon."),
    Spec("process_virtual_memory_bytes", Kind.GAUGE, (), "Virtual memory of the daemon."),
    Spec("process_open_fds", Kind.GAUGE, (), "File descriptors that the daemon has open."),
    Spec("process_max_fds", Kind.GAUGE, (), "File descriptors that the daemon may have open."),
    Spec("process_start_time_seconds", Kind.GAUGE, (), "When the daemon started, in seconds since the epoch."),
)
"""Made by prometheus-client's process collector, which has help texts of its own."""

OWN = (
    RPCS,
    RPC_SECONDS,
    RPCS_IN_FLIGHT,
    PODS,
    CONTAINERS,
    KEEPERS,
    START_PHASE,
    PULLS,
    PULL_SECONDS,
    PULL_BYTES,
    PUSHES,
    PUSH_SECONDS,
    PUSH_BYTES,
    EVENTS_MERGED,
    EVENT_STREAMS_ENDED,
    LOG_DROPPED,
    LEAKS,
    DEGRADED,
    NETWORK_ATTACH_SECONDS,
    NETWORK_DETACH_SECONDS,
    NETWORK_ERRORS,
    NETWORK_ADDRESSES,
    BUILD,
)
ALL = OWN + PROCESS
