"""What happened, for Prometheus: an `on_batch` on its official client library.

Needs the extra `prometheus`. It is imported by whoever uses it, never by the rest of batchify.
"""

import os
import threading
import weakref
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ._stats import BatchReport, Observer

_ITEMS = [2**n for n in range(11)]
# The library's own begin at 5 ms, where many a batch has ended.
_SECONDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

_GAUGES = {
    "pending": ("batchify_pending_items", "Items that wait"),
    "running": ("batchify_running_items", "Items in a batch whose callers have no answer yet"),
    "in_flight": ("batchify_in_flight_batches", "Batches that are running"),
}

# A registry takes each name once, so all observers on a registry have the same metrics.
_lock = threading.RLock()  # since a finalizer may make one, on a thread that does
_metrics: "WeakKeyDictionary[CollectorRegistry, _Metrics]" = WeakKeyDictionary()


class _Metrics(Collector):
    """The metrics of one registry, and a collector of those that the functions are asked for at each scrape."""

    def __init__(self, to: CollectorRegistry) -> None:
        # Without a lock, as a finalizer or a signal handler may bring another one at any line.
        self.engines: dict[int, weakref.ref[Any]] = {}  # by id()
        self.names: dict[str, None] = {}  # of these, and of those that have gone
        self.reported: dict[str, dict[str, int]] = {}  # by those that cannot be asked
        self.asks = "PROMETHEUS_MULTIPROC_DIR" not in os.environ  # else another process is scraped, by files
        to.register(self)
        try:
            self._make(to)
        except BaseException:
            to.unregister(self)
            raise

    def _make(self, to: CollectorRegistry) -> None:
        by = ["function"]
        self.size = Histogram("batchify_batch_size", "Items in a batch", by, registry=to, buckets=_ITEMS)
        self.full = Counter("batchify_full_batches_total", "Batches taken because they were full", by, registry=to)
        self.failed = Counter("batchify_failed_batches_total", "Batches that ended with an error", by, registry=to)
        name, text = "batchify_item_wait_seconds", "Seconds that an item waited until its batch was taken"
        self.wait = Histogram(name, text, by, registry=to, buckets=_SECONDS)
        name, text = "batchify_batch_duration_seconds", "Seconds from taking a batch until its results were there"
        self.duration = Histogram(name, text, by, registry=to, buckets=_SECONDS)
        # livesum: of several processes that are scraped together, the sum over those alive.
        if not self.asks:
            name, text = _GAUGES["pending"]
            self.pending = Gauge(name, text, by, registry=to, multiprocess_mode="livesum")
            name, text = _GAUGES["in_flight"]
            self.in_flight = Gauge(name, text, by, registry=to, multiprocess_mode="livesum")
        name, text = "batchify_refused_items_total", "Items refused since max_pending others waited"
        self.refused = Counter(name, text, by, registry=to)

    def describe(self) -> list[Metric]:
        """Return the gauges, without values."""
        return [GaugeMetricFamily(*gauge, labels=["function"]) for gauge in _GAUGES.values()] if self.asks else []

    def report(self, name: str, pending: int, in_flight: int) -> None:
        """Keep what a report says, for where nobody can be asked."""
        if self.asks:
            self.reported[name] = {"pending": pending, "in_flight": in_flight}
        else:
            self.pending.labels(name).set(pending)
            self.in_flight.labels(name).set(in_flight)

    def collect(self) -> list[Metric]:
        """Return the gauges as they are now, and bring up to date how many items were refused."""
        engines = [engine for known in self.engines.copy().values() if (engine := known()) is not None]
        figures = self.reported.copy() | {name: dict.fromkeys(_GAUGES, 0) for name in self.names.copy()}
        for engine in engines:
            stats, sums = engine.stats, figures[engine.name]
            for figure in _GAUGES:
                sums[figure] += getattr(stats, figure)
            self.refused.labels(engine.name).inc(engine.tally.newly_refused())
        gauges = self.describe()
        for figure, gauge in zip(_GAUGES, gauges, strict=False):
            for name, sums in figures.items():
                if figure in sums:
                    gauge.add_sample(gauge.name, {"function": name}, sums[figure])
        return gauges


class PrometheusObserver(Observer):
    """Counts batches in a registry of `prometheus_client`: `@batched(batch_size=64, on_batch=PrometheusObserver())`.

    Needs the extra `prometheus`: `pip install 'pybatchify[prometheus]'`.

    Histograms: `batchify_batch_size`, `batchify_item_wait_seconds`, `batchify_batch_duration_seconds`. Counters:
    `batchify_full_batches_total`, `batchify_failed_batches_total`, `batchify_refused_items_total`. Gauges, right at the
    moment of the scrape, also before the first batch has ended: `batchify_pending_items`, `batchify_running_items`,
    `batchify_in_flight_batches`. They have one label, `function`.

    With several processes scraped together (`PROMETHEUS_MULTIPROC_DIR`), gauges and refused items are as they were when
    the last batch ended, and there is no `batchify_running_items`.

    One observer may serve many functions; several on one registry share its metrics. Functions of the same name, all
    instances and event loops are counted together. When `isolate` splits a batch, its items' waits count once, sizes
    and durations for each part.

    Pickled, it counts in the default registry of the other side; with a registry of its own, it cannot be pickled.

    Args:
        registry: Where the metrics are; the first observer makes them.

    Raises:
        ValueError: Another metric in the registry has such a name.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        with _lock:
            if registry not in _metrics:
                _metrics[registry] = _Metrics(registry)
            self._metrics = _metrics[registry]

    def watch(self, engine: Any) -> None:
        """For batchify only. Show the figures of a buffer at each scrape, as long as it lives."""
        key, engines = id(engine), self._metrics.engines
        self._metrics.names[engine.name] = None
        engines[key] = weakref.ref(engine, lambda _: engines.pop(key, None))

    def __call__(self, report: BatchReport) -> None:
        """Count one batch."""
        metrics, function = self._metrics, report.name
        metrics.size.labels(function).observe(report.size)
        metrics.duration.labels(function).observe(report.duration)
        # By 0 as well: until then there is no series.
        metrics.full.labels(function).inc(report.reason == "full")
        metrics.failed.labels(function).inc(report.error is not None)
        metrics.report(function, report.pending, report.in_flight)
        metrics.refused.labels(function).inc(report.refused)
        wait = metrics.wait.labels(function)
        for seconds in report.waits if report.reason != "isolate" else ():
            wait.observe(seconds)

    def __reduce__(self) -> "tuple[type[PrometheusObserver], tuple[CollectorRegistry, ...]]":
        return type(self), () if self._registry is REGISTRY else (self._registry,)
