"""cAdvisor's metrics → CRI messages, encoded with what never changes of a series kept from scrape to scrape.

A scrape of a hundred pods has about eight thousand series. Of each only time and value change, so name, kind and
labels are encoded once and joined with these two: protobuf's fields come in any order.
"""

from collections.abc import Iterable, Iterator, Sequence

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.cadvisor import DESCRIPTORS, LABELS, ContainerMetrics, Key, PodMetrics, Series, image_label
from crishim.server.convert.rows import FIELD_1, record, varint

_METRICS = b"\x12"
"""Tag of PodSandboxMetrics.metrics and ContainerMetrics.metrics (field 2)."""
_CONTAINERS = b"\x1a"
"""Tag of PodSandboxMetrics.container_metrics (field 3)."""
_TIMESTAMP = b"\x10"
"""Tag of Metric.timestamp (field 2)."""
_VALUE = b"\x2a"
"""Tag of Metric.value (field 5), whose own number is field 1."""
_NUMBER = b"\x08"
_KINDS = {found.name: pb.MetricType.ValueType(found.kind) for found in DESCRIPTORS}
_MOST = (1 << 64) - 1


def descriptors() -> pb.ListMetricDescriptorsResponse:
    """Return all descriptors; each series has as many label values as its descriptor has keys."""
    return pb.ListMetricDescriptorsResponse(
        descriptors=[
            pb.MetricDescriptor(name=found.name, help=found.help, label_keys=(*LABELS, *found.labels))
            for found in DESCRIPTORS
        ]
    )


class _Heads:
    """The encoded heads of one object's series; `labels` are the values of `LABELS`."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._heads: dict[Key, bytes] = {}

    def encode(self, series: Iterable[Series]) -> bytes:
        """Return the series as records of field 2."""
        heads = self._heads
        parts = []
        before, time = -1, b""
        for key, value, at in series:
            head = heads.get(key)
            if head is None:
                metric = pb.Metric(name=key[0], metric_type=_KINDS[key[0]], label_values=(*self._labels, *key[1:]))
                head = heads[key] = metric.SerializeToString()
            if at != before:
                before, time = at, _TIMESTAMP + varint(at)
            # A kernel that counts backwards for a moment must not break the whole answer.
            number = _NUMBER + varint(min(value, _MOST)) if value > 0 else b""
            # The value is there even if it is 0: kubelet takes it without asking.
            body = b"%b%b%b%c%b" % (head, time, _VALUE, len(number), number)
            parts.append(b"%b%b%b" % (_METRICS, varint(len(body)), body))
        return b"".join(parts)


class MetricsEncoder:
    """Encodes pods; keeps the heads of those that the last whole scrape had."""

    def __init__(self) -> None:
        self._kept: dict[str, _Heads] = {}

    def pods(self, found: Iterable[PodMetrics]) -> Iterator[bytes]:
        """Yield ListPodSandboxMetricsResponse's rows; what is not among them is forgotten at the end."""
        seen: dict[str, _Heads] = {}
        for pod in found:
            meta = pod.view.metadata
            heads = self._kept.get(pod.view.id) or _Heads(("", pod.group, "", "", meta.namespace, meta.name))
            seen[pod.view.id] = heads
            inside = [record(_CONTAINERS, self._container(pod, container, seen)) for container in pod.containers]
            own = pb.PodSandboxMetrics(pod_sandbox_id=pod.view.id).SerializeToString()
            yield record(FIELD_1, b"".join((own, heads.encode(pod.series), *inside)))
        self._kept = seen

    def _container(self, pod: PodMetrics, container: ContainerMetrics, seen: dict[str, _Heads]) -> bytes:
        view, meta = container.view, pod.view.metadata
        heads = self._kept.get(view.id) or _Heads(
            (view.metadata.name, container.group, image_label(view), view.id, meta.namespace, meta.name)
        )
        seen[view.id] = heads
        return pb.ContainerMetrics(container_id=view.id).SerializeToString() + heads.encode(container.series)
