"""What `pods/` shows of sandboxes and containers: plain records that `server/convert` turns into CRI messages.

Times are nanoseconds since the epoch; 0 means "has not happened".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    Metadata,
    NamespaceOptions,
    ResolvedUser,
    Resources,
)


class SandboxState(IntEnum):
    """CRI `PodSandboxState`."""

    READY = 0
    NOTREADY = 1


class ContainerState(IntEnum):
    """CRI `ContainerState`."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """Conditions that must all hold; "" and None match everything. `id` may be a prefix."""

    id: str = ""
    state: SandboxState | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """Conditions that must all hold; "" and None match everything. `id` and `sandbox_id` may be prefixes."""

    id: str = ""
    sandbox_id: str = ""
    state: ContainerState | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxView:
    """A row of ListPodSandbox and the base of PodSandboxStatus."""

    id: str
    metadata: Metadata
    state: SandboxState
    created_at: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    runtime_handler: str = ""
    ips: tuple[str, ...] = ()
    namespaces: NamespaceOptions = field(default_factory=NamespaceOptions)


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A row of ListContainers and the base of ContainerStatus.

    `image` is the spec as requested, but for its name, which is the user's; `image_ref` a digest reference where there
    is one, else the id; `image_id` the id. `config` gives what is echoed as requested: metadata, labels, annotations
    and mounts, whose host paths kubelet compares with what it asked for. `stop_signal` is the one that a stop sends,
    the runtime's own where neither request nor image names one (KEP-4960).
    """

    id: str
    sandbox_id: str
    metadata: ContainerMetadata
    config: ContainerConfig
    image: ImageSpec
    image_ref: str
    image_id: str
    state: ContainerState
    created_at: int
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    resources: Resources | None = None
    user: ResolvedUser | None = None
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Outcome of ExecSync."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass(frozen=True, slots=True)
class Psi:
    """Pressure stall information of one kind (`some` or `full`): total in µs, averages in percent."""

    total: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """Both kinds of one resource."""

    some: Psi
    full: Psi


@dataclass(frozen=True, slots=True)
class CpuStats:
    """CPU time; `usage_nano_cores` is None until two samples give a rate."""

    timestamp: int
    usage_core_nano_seconds: int
    usage_nano_cores: int | None = None
    psi: Pressure | None = None


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Memory in bytes; None is not known on this host."""

    timestamp: int
    working_set_bytes: int
    usage_bytes: int
    rss_bytes: int
    available_bytes: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    psi: Pressure | None = None


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Swap in bytes."""

    timestamp: int
    usage_bytes: int
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IoStats:
    """Block I/O pressure."""

    timestamp: int
    psi: Pressure | None = None


@dataclass(frozen=True, slots=True)
class FsStats:
    """Usage of a file system part."""

    timestamp: int
    mountpoint: str
    used_bytes: int
    inodes_used: int


class InterfaceStats(Protocol):
    """Traffic of one interface, as the pod sees it."""

    @property
    def name(self) -> str:
        """Interface name."""

    @property
    def rx_bytes(self) -> int:
        """Bytes received."""

    @property
    def rx_packets(self) -> int:
        """Packets received."""

    @property
    def rx_errors(self) -> int:
        """Errors in receiving."""

    @property
    def rx_dropped(self) -> int:
        """Packets that were to be received and were dropped."""

    @property
    def tx_bytes(self) -> int:
        """Bytes sent."""

    @property
    def tx_packets(self) -> int:
        """Packets sent."""

    @property
    def tx_errors(self) -> int:
        """Errors in sending."""

    @property
    def tx_dropped(self) -> int:
        """Packets that were to be sent and were dropped."""


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """ContainerStats; exited containers have only `view` and the writable layer."""

    view: ContainerView
    cpu: CpuStats | None
    memory: MemoryStats | None
    writable_layer: FsStats | None
    swap: SwapStats | None
    io: IoStats | None


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """PodSandboxStats with its containers'; `interfaces[0]` is the default one (eth0); empty for host network."""

    view: SandboxView
    cpu: CpuStats | None
    memory: MemoryStats | None
    network_timestamp: int
    interfaces: tuple[InterfaceStats, ...]
    process_timestamp: int
    process_count: int | None
    io: IoStats | None
    containers: tuple[ContainerStats, ...]
