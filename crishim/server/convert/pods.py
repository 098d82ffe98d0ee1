"""A pod with its containers: PodSandboxStatus's answer and the events, which show the same.

For events each status is encoded once and kept as long as someone listens and the object does not change: an event
costs the encoding of what it is about, however many listen and however many containers the pod has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.events import Event, EventType
from crishim.pods.views import ContainerView, SandboxView
from crishim.server.convert.rows import Rows
from crishim.server.convert.status import container_status, sandbox_status

_SANDBOX = b"\x22"
"""Tag of ContainerEventResponse.pod_sandbox_status (field 4)."""
_CONTAINER = b"\x2a"
"""Tag of ContainerEventResponse.containers_statuses (field 5)."""


def status_answer(
    sandbox: SandboxView, containers: Sequence[ContainerView], timestamp: int, info: Mapping[str, str]
) -> pb.PodSandboxStatusResponse:
    """Return PodSandboxStatusResponse; `timestamp` is when the views were taken."""
    return pb.PodSandboxStatusResponse(
        status=sandbox_status(sandbox),
        info=info,
        containers_statuses=[container_status(view) for view in containers],
        timestamp=timestamp,
    )


class EventEncoder:
    """Encodes events; protobuf reads a message that is put together from encoded parts as one."""

    def __init__(self) -> None:
        self._sandboxes = Rows(sandbox_status)
        self._containers = Rows(container_status)
        self._listeners = 0

    @contextmanager
    def listener(self) -> Iterator[None]:
        """Keep encoded statuses as long as one listens."""
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._sandboxes.clear()
                self._containers.clear()

    def encode(self, event: Event) -> bytes:
        """Return ContainerEventResponse; what is deleted is not kept."""
        head = pb.ContainerEventResponse(
            container_id=event.id, container_event_type=pb.ContainerEventType.ValueType(event.kind), created_at=event.at
        )
        parts = [head.SerializeToString(), self._sandboxes.row(event.sandbox, _SANDBOX)]
        parts += [self._containers.row(view, _CONTAINER) for view in event.containers]
        if event.kind is EventType.DELETED:
            self._sandboxes.drop(event.id)
            self._containers.drop(event.id)
        return b"".join(parts)
