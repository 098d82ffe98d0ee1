"""Pods and containers as the read-only commands show them: found by name or id, joined, as the daemon streams them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crishim.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from crishim.cli.client import Client

SHORT = 13
"""Digits of an id in a table, as crictl prints them."""

MIN_PREFIX = 3
"""Fewest digits that are taken for the beginning of an id."""


@dataclass(frozen=True, slots=True)
class Row:
    """A container (`api_pb2.Container`) with its pod (`api_pb2.PodSandbox`)."""

    container: Any
    pod: Any

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.container.metadata.name)

    @property
    def place(self) -> str:
        """The pod's namespace and name."""
        return place(self.pod)

    @property
    def state(self) -> str:
        """The container's state in a word."""
        return STATES[self.container.state]


STATES = ("created", "running", "exited", "unknown")
"""By CRI `ContainerState`."""


def place(pod: Any) -> str:
    """Return a pod's namespace and name in one word."""
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def pods(client: "Client") -> dict[str, Any]:
    """Return all pods by id, the newest first."""
    from crishim._proto.runtime.v1 import api_pb2 as pb

    parts = client.stream(client.runtime.StreamPodSandboxes, pb.StreamPodSandboxesRequest())
    return {pod.id: pod for part in parts for pod in part.pod_sandboxes}


def rows(client: "Client") -> list[Row]:
    """Return all containers with their pods, the newest first; one whose pod goes at this moment is left out."""
    from crishim._proto.runtime.v1 import api_pb2 as pb

    known = pods(client)
    parts = client.stream(client.runtime.StreamContainers, pb.StreamContainersRequest())
    found = [container for part in parts for container in part.containers]
    return [Row(one, known[one.pod_sandbox_id]) for one in found if one.pod_sandbox_id in known]


def chosen(found: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows that names mean, all without names: ids, names of containers, or of pods (`[NAMESPACE/]POD`).

    Raises:
        NotFoundError: a name means none.
    """
    found = list(found)
    if not names:
        return found
    wanted = {name: [row for row in found if _means(name, row)] for name in names}
    for name, those in wanted.items():
        if not those:
            raise NotFoundError(f"no container or pod has the name or id {name!r}: see 'crishim ps -a'")
    ids = {row.container.id for those in wanted.values() for row in those}
    return [row for row in found if row.container.id in ids]


def one(client: "Client", name: str) -> Row:
    """Return the container that a name means; of several attempts of it in one pod the last.

    Raises:
        NotFoundError: there is none.
        InvalidArgumentError: there are several.
    """
    found = chosen(rows(client), [name])
    kinds = {(row.pod.id, row.name) for row in found}
    if len(kinds) > 1:
        some = ", ".join(f"{row.place} {row.name} ({row.container.id[:SHORT]})" for row in found[:3])
        raise InvalidArgumentError("", f"{name!r} means {len(kinds)} containers ({some}…): give an id")
    return found[0]


def pod_id(client: "Client", name: str) -> str:
    """Return the id of the pod that a name means, `[NAMESPACE/]POD` or an id; of several attempts the last.

    Raises:
        NotFoundError: there is none.
        InvalidArgumentError: there are several.
    """
    found = [
        pod
        for pod in pods(client).values()
        if name in {pod.metadata.name, place(pod)} or (len(name) >= MIN_PREFIX and pod.id.startswith(name))
    ]
    if not found:
        raise NotFoundError(f"no pod has the name or id {name!r}: see 'crishim ps -a'")
    if len({pod.metadata.uid for pod in found}) > 1:
        some = ", ".join(f"{place(pod)} ({pod.id[:SHORT]})" for pod in found[:3])
        raise InvalidArgumentError("", f"{name!r} means several pods ({some}…): give an id")
    return str(found[0].id)


def _means(name: str, row: Row) -> bool:
    pod = row.pod
    exact = {row.name, pod.metadata.name, row.place, f"{row.place}/{row.name}", f"{pod.metadata.name}/{row.name}"}
    return name in exact or (len(name) >= MIN_PREFIX and (row.container.id.startswith(name) or pod.id.startswith(name)))


def stats(client: "Client") -> Iterator[Any]:
    """Yield the stats of all ready pods."""
    from crishim._proto.runtime.v1 import api_pb2 as pb

    for part in client.stream(client.runtime.StreamPodSandboxStats, pb.StreamPodSandboxStatsRequest()):
        yield from part.pod_sandbox_stats


def percent(nanocores: Any) -> str:
    """Return CPU use as top(1) shows it: 100 is one processor; `-` as long as it is not known."""
    return f"{nanocores.value / 10_000_000:.1f}" if nanocores is not None else "-"


def maybe(message: Any, field: str) -> Any:
    """Return a field's message, or None where it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def restarts(found: Iterable[Row]) -> Mapping[str, int]:
    """Return pod id → how often its containers were made anew, as kubelet counts by their attempts."""
    newest: dict[tuple[str, str], int] = {}
    for row in found:
        key = row.pod.id, row.name
        newest[key] = max(newest.get(key, 0), row.container.metadata.attempt)
    counts: dict[str, int] = {}
    for (pod, _), attempt in newest.items():
        counts[pod] = counts.get(pod, 0) + attempt
    return counts
