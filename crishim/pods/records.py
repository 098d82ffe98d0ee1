"""What the store keeps of a sandbox and of a container: frozen documents in two halves.

The *spec* never changes after the object was made; the *status* is replaced whole at each change. A document is
the JSON object `{"spec": …, "status": …}` by `crishim.codec`; since the spec is large and constant, its bytes are
encoded once per object and spliced in (`join`), so that a change of state costs the encoding of a few numbers.

Out of scope: which changes are allowed (`states`), and how rows are written (`crishim.store`).
Times are nanoseconds since the epoch; 0 means "has not happened".
"""

from dataclasses import dataclass

from crishim import codec
from crishim.network.model import Attachment
from crishim.pods.states import Stage
from crishim.pods.views import ContainerState
from crishim.request import ContainerConfig, Metadata, Mount, ResolvedUser, Resources, SandboxConfig


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """The part of a sandbox that never changes.

    `boot_id` tells whether its processes can still exist; `log_directory` is the request's without links, or "".
    """

    id: str
    config: SandboxConfig
    created_at: int
    boot_id: str
    handler: str = ""
    log_directory: str = ""


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """The part of a sandbox that changes.

    `network_held` stays true until detach has worked, `kernel_held` until keeper, namespaces and cgroup are gone: a
    sandbox that holds something is never forgotten.
    `reason` says in a word why it is NOTREADY.
    """

    stage: Stage = Stage.CREATING
    keeper_pid: int = 0
    keeper_start: int = 0
    attachment: Attachment | None = None
    network_held: bool = False
    kernel_held: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A sandbox's row."""

    spec: SandboxSpec
    status: SandboxStatus


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """The part of a container that never changes.

    `mounts` are the request's with host paths resolved; `log_path` is absolute or ""; `stop_signal` is the CRI's
    name or ""; `layers` are the image's layer directories, bottom first; `volumes` the container's own directories for
    the image's volumes. `image_ref` is the image's digest reference, or its id; "" in a record from before it was kept.
    """

    id: str
    sandbox_id: str
    config: ContainerConfig
    created_at: int
    image_id: str
    layers: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    log_path: str = ""
    stop_signal: str = ""
    image_ref: str = ""
    volumes: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """The part of a container that changes."""

    state: ContainerState = ContainerState.CREATED
    pid: int = 0
    start_time: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    resources: Resources | None = None
    user: ResolvedUser | None = None


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container's row."""

    spec: ContainerSpec
    status: ContainerStatus


def join(spec: bytes, status: SandboxStatus | ContainerStatus) -> bytes:
    """Return the document of a spec that is already encoded and a status."""
    return b'{"spec":' + spec + b',"status":' + codec.dumps(status) + b"}"


def sandbox_name(metadata: Metadata) -> str:
    """Return the name that is unique among sandboxes: metadata and attempt, as kubelet counts them."""
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def container_name(sandbox_id: str, config: ContainerConfig) -> str:
    """Return the name that is unique among containers."""
    return f"{config.metadata.name}_{config.metadata.attempt}_{sandbox_id}"
