"""The daemon's metrics: an `Observer` for the lower layers, an RPC observer for the server, one registry of its own.

Out of scope: HTTP (`endpoint.py`). What is counted as it happens is a prometheus-client metric; what can be asked
(pods, containers, keepers) is asked at the scrape, on the event loop, from the callbacks given to `watch`. Invariant:
`render` never raises for a callback that fails; its series are then missing from that scrape.
"""

import asyncio
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from crishim.log import SINK
from crishim.metrics import catalog, table
from crishim.version import CRI_VERSION, VERSION

Source = Callable[[], Mapping[Any, int]]  # Any: tuples of as many texts as the gauge has labels

_MOST_NETWORK_ERRORS = 64
"""Series of network errors: plugins' names come from files, and plugins may give any code."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("crishim.metrics")


class Metrics:
    """All metrics of one daemon; implements `crishim.observe.Observer` and the server's `RpcObserver`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series a counter that no one reads
        self._registry = CollectorRegistry()
        self._rpcs = self._counter(catalog.RPCS)
        self._rpc_seconds = self._histogram(catalog.RPC_SECONDS)
        self._in_flight = self._gauge(catalog.RPCS_IN_FLIGHT)
        self._start_phase = self._histogram(catalog.START_PHASE)
        self._pulls = self._counter(catalog.PULLS)
        self._pull_seconds = self._histogram(catalog.PULL_SECONDS)
        self._pull_bytes = self._counter(catalog.PULL_BYTES)
        self._pushes = self._counter(catalog.PUSHES)
        self._push_seconds = self._histogram(catalog.PUSH_SECONDS)
        self._push_bytes = self._counter(catalog.PUSH_BYTES)
        self._events_merged = self._counter(catalog.EVENTS_MERGED)
        self._event_streams_ended = self._counter(catalog.EVENT_STREAMS_ENDED)
        self._leaks = self._counter(catalog.LEAKS)
        self._degraded = self._counter(catalog.DEGRADED)
        self._attach = self._histogram(catalog.NETWORK_ATTACH_SECONDS)
        self._detach = self._histogram(catalog.NETWORK_DETACH_SECONDS)
        self._network_errors = self._counter(catalog.NETWORK_ERRORS)
        self._network_failures: set[tuple[str, str]] = set()
        self._gauge(catalog.BUILD).labels(VERSION, CRI_VERSION, platform.python_version()).set(1)
        self._watched = _Watched()
        self._watched.sources[catalog.LOG_DROPPED] = lambda: {(): SINK.dropped}
        self._registry.register(self._watched)
        ProcessCollector(registry=self._registry)
        for outcome in ("ok", "cached"):
            self._pulls.labels(outcome)
        self._pushes.labels("ok")
        self._flying: dict[str, Gauge] = {}
        self._ended: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    # --- the server's ---------------------------------------------------------------------------
    def rpc_started(self, method: str) -> None:
        """A call of `method` began."""
        gauge = self._flying.get(method)
        if gauge is None:
            gauge = self._flying[method] = self._in_flight.labels(method)
        gauge.inc()

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """A call that began has ended with the status code of this name."""
        self._flying[method].dec()
        pair = self._ended.get((method, code))
        if pair is None:
            pair = (self._rpcs.labels(method, code), self._rpc_seconds.labels(method, code))
            self._ended[method, code] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    # --- crishim.observe.Observer -----------------------------------------------------------------
    def start_phase(self, step: str, seconds: float) -> None:
        """One step of a start took `seconds`."""
        self._start_phase.labels(step).observe(seconds)

    def image_pull(self, *, outcome: str, seconds: float) -> None:
        """A pull ended."""
        self._pulls.labels(outcome).inc()
        self._pull_seconds.labels(outcome).observe(seconds)

    def image_received(self, size: int) -> None:
        """A pull received bytes."""
        self._pull_bytes.inc(size)

    def image_push(self, *, outcome: str, seconds: float) -> None:
        """A push ended."""
        self._pushes.labels(outcome).inc()
        self._push_seconds.labels(outcome).observe(seconds)

    def image_sent(self, size: int) -> None:
        """A push sent bytes."""
        self._push_bytes.inc(size)

    def leak_reclaimed(self, kind: str, count: int = 1) -> None:
        """Things without an owner were removed."""
        self._leaks.labels(kind).inc(count)

    def event_merged(self, count: int = 1) -> None:
        """Events reached a slow subscriber as part of later ones."""
        self._events_merged.inc(count)

    def events_ended(self) -> None:
        """A subscriber was too far behind."""
        self._event_streams_ended.inc()

    def degraded(self, what: str) -> None:
        """The nearest allowed value was used instead of the wanted one."""
        self._degraded.labels(what).inc()

    def network_attach(self, kind: str, seconds: float) -> None:
        """A pod was attached."""
        self._attach.labels(kind).observe(seconds)

    def network_detach(self, kind: str, seconds: float) -> None:
        """A pod was detached."""
        self._detach.labels(kind).observe(seconds)

    def network_error(self, plugin: str, code: str) -> None:
        """A plugin failed; once there are many pairs of plugin and code, new ones are counted as `other`."""
        pair = plugin, code
        if pair not in self._network_failures:
            if len(self._network_failures) >= _MOST_NETWORK_ERRORS:
                pair = "other", "other"
            self._network_failures.add(pair)
        self._network_errors.labels(*pair).inc()

    # --- the scrape -------------------------------------------------------------------------------
    def watch(self, spec: catalog.Spec, source: Source) -> None:
        """Have each scrape ask `source` for a gauge: values by those of the gauge's labels, in their order."""
        self._watched.sources[spec] = source

    async def render(self) -> bytes:
        """Return the text of `/metrics`: asked here on the event loop, written in a thread."""
        self._watched.read()
        return await asyncio.to_thread(generate_latest, self._registry)

    @staticmethod
    def table() -> str:
        """Return the Markdown table of all metrics."""
        return table.markdown()

    # --- making -----------------------------------------------------------------------------------
    def _counter(self, spec: catalog.Spec) -> Counter:
        return Counter(spec.name, spec.help, spec.labels, registry=self._registry)

    def _gauge(self, spec: catalog.Spec) -> Gauge:
        return Gauge(spec.name, spec.help, spec.labels, registry=self._registry)

    def _histogram(self, spec: catalog.Spec) -> Histogram:
        return Histogram(spec.name, spec.help, spec.labels, registry=self._registry, buckets=catalog.BUCKETS)


class _Watched(Collector):
    """Collector of the figures that are asked for at each scrape; keys are the values of a metric's labels."""

    def __init__(self) -> None:
        self.sources: dict[catalog.Spec, Source] = {}
        self._values: dict[catalog.Spec, Mapping[tuple[str, ...], int]] = {}

    def read(self) -> None:
        """Ask all sources now; a failing one is logged and left out."""
        values: dict[catalog.Spec, Mapping[tuple[str, ...], int]] = {}
        for spec, source in self.sources.items():
            try:
                values[spec] = dict(source())
            except Exception:
                log.exception("cannot read a metric", metric=spec.name)
        self._values = values

    def collect(self) -> Iterable[Any]:
        """Yield what was read last."""
        for spec in self.sources:
            kind = CounterMetricFamily if spec.kind is catalog.Kind.COUNTER else GaugeMetricFamily
            family = kind(spec.name, spec.help, labels=spec.labels)
            for key, value in sorted(self._values.get(spec, {}).items()):
                family.add_metric(key, value)
            yield family
